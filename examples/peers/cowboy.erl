%% Fan-out and echo as small as Cowboy makes them, with `pg` for the topics: {"sub":topic}, {"pub":topic,"data":…}.
-module(cowboy_peer).
-export([main/0, init/2, websocket_init/1, websocket_handle/2, websocket_info/2]).

main() ->
    {ok, _} = application:ensure_all_started(cowboy),
    {ok, _} = pg:start_link(),
    Routes = cowboy_router:compile([{'_', [{"/", ?MODULE, []}]}]),
    {ok, _} = cowboy:start_clear(peer, #{socket_opts => [{ip, {127, 0, 0, 1}}, {port, 0}], max_connections => infinity,
        num_acceptors => 10}, #{env => #{dispatch => Routes}}),
    io:format("ready 127.0.0.1:~b~n", [ranch:get_port(peer)]),
    receive stop -> ok end.

init(Request, State) -> {cowboy_websocket, Request, State, #{idle_timeout => infinity}}.
websocket_init(State) -> {[], State}.

websocket_handle({text, Text}, State) ->
    case jsx_free(Text) of
        {sub, Topic} -> pg:join(Topic, self()), {[], State};
        {pub, Topic, Data} ->
            Out = <<"{\"event\":\"app:x\",\"topic\":\"", Topic/binary, "\",\"data\":", Data/binary, "}">>,
            [Pid ! {out, Out} || Pid <- pg:get_members(Topic)],
            {[], State};
        echo -> {[{text, Text}], State}
    end;
websocket_handle(_, State) -> {[], State}.

websocket_info({out, Out}, State) -> {[{text, Out} | more(15)], State};
websocket_info(_, State) -> {[], State}.

%% Waiting publications share a write.
more(0) -> [];
more(N) -> receive {out, Out} -> [{text, Out} | more(N - 1)] after 0 -> [] end.

%% No JSON library comes with it; the forms are fixed.
jsx_free(<<"{\"sub\":\"", Rest/binary>>) -> [Topic, _] = binary:split(Rest, <<"\"">>), {sub, Topic};
jsx_free(<<"{\"pub\":\"", Rest/binary>>) ->
    [Topic, <<",\"data\":", Data/binary>>] = binary:split(Rest, <<"\"">>),
    {pub, Topic, binary:part(Data, 0, byte_size(Data) - 1)};
jsx_free(_) -> echo.
