//! The router: which models are asked for an answer, one after the other, and what is done when one fails.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use genai::Client;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::answers::{Answers, Keep};
use super::breaker::Breaker;
use super::embedding::{Embedder, WORDS};
use super::failure::{Failure, FailureKind};
use super::options::Options;
use super::provider::Provider;
use super::route::Route;
use super::similar;
use super::wire::{self, AnswerProgress, Clocks, Target};
use crate::kernel::chat::{Completion, Cost, Price, Prompt, Usage};

/// The longest pause between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// The first pause; each one after it is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// A wrong key or name does not mend itself in seconds.
const REFUSED_PAUSE_MS: i64 = 30_000;

/// A piece of an answer, as it comes.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerDelta {
    Text(String),
}

/// How hard a question is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Complexity {
    Simple,
    Complex,
}

/// A question, and how it may be answered.
#[derive(Clone)]
pub struct ModelAsk<'a> {
    pub prompt: &'a Prompt,
    /// A route's name or a model's. `None`: the default route.
    pub route: Option<&'a str>,
    /// `None`: by the route's rules.
    pub complexity: Option<Complexity>,
    /// Over all attempts. `None`: as configured.
    pub deadline: Option<Duration>,
    /// Whether it is asked again after a call that may be charged.
    pub may_pay_twice: bool,
    /// No call that could cost more.
    pub max_cost: Option<Cost>,
    /// Whether an earlier answer to the same will do, and this one for a later question. `None`, as it has to be where
    /// memories are in the prompt: no.
    pub keep: Option<Keep<'a>>,
}

impl<'a> ModelAsk<'a> {
    pub fn new(prompt: &'a Prompt) -> Self {
        Self {
            prompt,
            route: None,
            complexity: None,
            deadline: None,
            may_pay_twice: false,
            max_cost: None,
            keep: None,
        }
    }
}

/// Who pays for the calls: asked before each one, and told what it came to.
pub trait Purse: Send + Sync {
    /// Sets aside the most that the call can cost. `Err`: there is not so much left.
    fn reserve(&self, call: u32, model: &str, most: Cost) -> BoxFuture<'_, Result<(), Failure>>;
    fn settle(&self, call: u32, bill: Bill) -> BoxFuture<'_, ()>;
}

/// What one call came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Bill {
    pub model: Arc<str>,
    pub usage: Usage,
    pub cost: Cost,
    pub failure: Option<FailureKind>,
}

/// Why there is no answer, and what was spent all the same.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelFailure {
    pub failure: Failure,
    /// The model that failed last. `None`: none was asked.
    pub model: Option<Arc<str>>,
    pub usage: Usage,
    pub cost: Cost,
    pub calls_made: u32,
}

pub(super) struct Model {
    pub name: Arc<str>,
    /// Whose it is and what it is called there, which its name alone does not say.
    identity: String,
    pub target: Target,
    pub provider: Arc<Provider>,
    pub price: Price,
    context: u64,
    vision: bool,
    /// What a picture counts as, at most.
    image_tokens: u64,
    pub breaker: Mutex<Breaker>,
}

impl Model {
    fn most(&self, prompt: &Prompt) -> Cost {
        self.price.most(prompt, self.image_tokens)
    }
}

pub struct ModelRouter {
    pub(super) client: Client,
    answers: Option<Answers>,
    /// Where the circuit breakers count from.
    started: Instant,
    pub(super) clocks: Clocks,
    deadline: Duration,
    pub(super) max_calls: u32,
    default: String,
    routes: BTreeMap<String, Route>,
    models: BTreeMap<String, Arc<Model>>,
    pub(super) embedder: String,
    pub(super) embedders: BTreeMap<String, Arc<Embedder>>,
}

impl ModelRouter {
    /// `Err`: what is wrong with the options.
    pub fn new(options: &Options) -> Result<Self, String> {
        let providers: BTreeMap<_, _> = options
            .providers
            .iter()
            .map(|(name, one)| (name.as_str(), (one, Arc::new(Provider::new(one)))))
            .collect();
        let mut models = BTreeMap::new();
        for (name, one) in &options.models {
            let at = |what: String| format!("ai.models.{name}.{what}");
            let Some((provider, shared)) = providers.get(one.provider.as_str()) else {
                return Err(at(format!("provider: there is no [ai.providers.{}]", one.provider)));
            };
            let price = one.price().map_err(at)?;
            let id = if one.id.is_empty() { name } else { &one.id };
            let model = Model {
                name: name.as_str().into(),
                identity: format!("{name} {:?} {} {id}", provider.wire, provider.url),
                target: Target::new(provider, id).calling_tools(one.tools),
                provider: shared.clone(),
                price,
                context: one.context,
                vision: one.vision,
                image_tokens: one.image_tokens.unwrap_or(provider.wire.image_tokens()),
                breaker: Mutex::default(),
            };
            models.insert(name.clone(), Arc::new(model));
        }
        Embedder::check(options)?;
        let mut embedders = BTreeMap::from([(WORDS.to_owned(), Arc::new(Embedder::words()))]);
        for (name, one) in &options.embedders {
            let at = |what: String| format!("ai.embedders.{name}.{what}");
            let Some((provider, shared)) = providers.get(one.provider.as_str()) else {
                return Err(at(format!("provider: there is no [ai.providers.{}]", one.provider)));
            };
            let wrong = || at(format!("input: {:?} is no price; \"0.02\" would be one", one.input));
            let input = Cost::parse(&one.input).ok_or_else(wrong)?;
            let id = if one.id.is_empty() { name } else { &one.id };
            let model = Model {
                name: name.as_str().into(),
                identity: String::new(),
                target: Target::new(provider, id),
                provider: shared.clone(),
                price: Price { input, ..Price::default() },
                context: 0,
                vision: false,
                image_tokens: 0,
                breaker: Mutex::default(),
            };
            let embedder = Embedder::of(name, one, model).map_err(at)?;
            embedders.insert(name.clone(), Arc::new(embedder));
        }
        let mut routes = BTreeMap::new();
        for (name, one) in &options.routes {
            let route = Route::new(one, &models).map_err(|e| format!("ai.routes.{name}.{e}"))?;
            routes.insert(name.clone(), route);
        }
        let is_known = routes.contains_key(&options.route) || models.contains_key(&options.route);
        if !options.models.is_empty() && !is_known {
            return Err(format!("ai.route: there is no route and no model {:?}", options.route));
        }
        let ms = Duration::from_millis;
        Ok(Self {
            client: client()?,
            answers: Answers::new(&options.cache),
            started: Instant::now(),
            clocks: Clocks {
                header: ms(options.header_ms),
                first_content: ms(options.first_content_ms),
                between: ms(options.between_ms),
            },
            deadline: ms(options.deadline_ms),
            max_calls: options.max_calls.max(1),
            default: options.route.clone(),
            routes,
            models,
            embedder: options.embedder.clone(),
            embedders,
        })
    }

    /// How long all attempts of one question may take together.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    pub fn default_route(&self) -> &str {
        &self.default
    }

    pub fn models(&self) -> Vec<String> {
        self.models.keys().cloned().collect()
    }

    pub fn routes(&self) -> Vec<String> {
        self.routes.keys().cloned().collect()
    }

    /// Whether there is any model to ask.
    pub fn has_models(&self) -> bool {
        !self.models.is_empty()
    }

    /// Answers from what is kept, or asks the models. With a `sink`, words go there as they come.
    pub async fn complete(
        &self,
        ask: &ModelAsk<'_>,
        purse: &Arc<dyn Purse>,
        sink: Option<&mpsc::Sender<AnswerDelta>>,
    ) -> Result<Completion, ModelFailure> {
        let models = self.plan(ask).map_err(|failure| Spent::default().failed(failure, None))?;
        let deadline = Instant::now() + ask.deadline.unwrap_or(self.deadline);
        let asked = self.ask_or_find(ask, &models, deadline, purse, sink);
        let (Some(answers), Some(keep)) = (&self.answers, &ask.keep) else { return asked.await };
        let identities = models.iter().map(|model| model.identity.as_str());
        match answers.key(keep, ask.prompt, identities) {
            Some(key) => answers.get_or(key, keep, deadline, sink, asked).await,
            None => asked.await,
        }
    }

    /// Answers with what was answered to a question that means the same, or asks the models.
    async fn ask_or_find(
        &self,
        ask: &ModelAsk<'_>,
        models: &[Arc<Model>],
        deadline: Instant,
        purse: &Arc<dyn Purse>,
        sink: Option<&mpsc::Sender<AnswerDelta>>,
    ) -> Result<Completion, ModelFailure> {
        let identities = models.iter().map(|model| model.identity.as_str());
        let asked = ask.keep.as_ref().and_then(|keep| {
            Some((keep.similar?, similar::question(keep, ask.prompt, identities)?))
        });
        let Some((similar, question)) = asked else {
            return self.ask_models(ask, models, deadline, purse, sink).await;
        };
        let (found, vector) = similar::found(similar, &question, deadline, sink).await;
        if let Some(found) = found {
            return Ok(found);
        }
        let answer = self.ask_models(ask, models, deadline, purse, sink).await?;
        if let Some(vector) = vector {
            similar::kept(similar, &question, &vector, &answer).await;
        }
        Ok(answer)
    }

    /// Asks one model after the other until one has answered, within one deadline and so many calls. After the first word
    /// nobody else is asked, since it cannot be taken back.
    async fn ask_models(
        &self,
        ask: &ModelAsk<'_>,
        models: &[Arc<Model>],
        deadline: Instant,
        purse: &Arc<dyn Purse>,
        sink: Option<&mpsc::Sender<AnswerDelta>>,
    ) -> Result<Completion, ModelFailure> {
        let mut spent = Spent::default();
        let mut wait = FIRST_WAIT;
        let mut too_long = 0;
        let mut last: Option<(Failure, Arc<str>)> = None;
        loop {
            let mut was_asked = false;
            for model in models {
                if model.context <= too_long || spent.calls >= self.max_calls {
                    continue;
                }
                if model.breaker.lock().admit(self.now_ms()).is_err() {
                    continue;
                }
                let trial = Trial::of(model);
                was_asked = true;
                let asked = self.ask_one(ask, trial, purse, sink, deadline, &mut spent).await;
                let (failure, is_heard) = match asked {
                    Ok(answer) => return Ok(spent.completion(answer, &model.name)),
                    Err(failed) => failed,
                };
                let may_go_on = failure.kind.is_safe_to_repeat()
                    || (failure.kind == FailureKind::Uncertain && ask.may_pay_twice);
                if is_heard || !may_go_on || Instant::now() >= deadline {
                    return Err(spent.failed(failure, Some(model.name.clone())));
                }
                if failure.kind == FailureKind::TooLong {
                    too_long = too_long.max(model.context);
                }
                last = Some((failure, model.name.clone()));
            }
            // A circuit that others have opened is not waited for: all would wait, for as long as an outage lasts.
            let Some((failure, name)) = last.take() else {
                let failure = Failure::new(FailureKind::Busy, "all models of the route are paused");
                return Err(spent.failed(failure, None));
            };
            let may_mend = matches!(
                failure.kind,
                FailureKind::Busy | FailureKind::Broken | FailureKind::Unreachable
            );
            let pause = failure.retry_after.map_or(wait, |after| after.max(wait));
            let is_late = Instant::now() + pause >= deadline || pause > LONGEST_WAIT;
            if !was_asked || !may_mend || is_late || spent.calls >= self.max_calls {
                return Err(spent.failed(failure, Some(name)));
            }
            sleep(pause).await;
            wait *= 2;
            last = Some((failure, name));
        }
    }

    pub(super) fn now_ms(&self) -> i64 {
        self.started.elapsed().as_millis() as i64
    }

    /// The models that may answer, in their order.
    fn plan(&self, ask: &ModelAsk<'_>) -> Result<Vec<Arc<Model>>, Failure> {
        let name = ask.route.unwrap_or(&self.default);
        let invalid = |why: String| Failure::new(FailureKind::Invalid, why);
        let (models, route) = match (self.routes.get(name), self.models.get(name)) {
            (Some(route), _) => (route.models(ask).clone(), Some(route)),
            (None, Some(model)) => (vec![model.clone()], None),
            (None, None) if self.models.is_empty() => {
                return Err(invalid("no model is configured".into()));
            }
            (None, None) => return Err(invalid(format!("there is no route or model {name:?}"))),
        };
        let needs = ask.prompt.estimated_tokens() / 2 + u64::from(ask.prompt.max_tokens);
        let cap =
            [ask.max_cost, route.and_then(|route| route.max_cost)].into_iter().flatten().min();
        let has_images = ask.prompt.has_images();
        if has_images && models.iter().all(|model| !model.vision) {
            return Err(invalid("no model of the route sees pictures".into()));
        }
        let fits = |model: &Arc<Model>| {
            (model.vision || !has_images)
                && model.context >= needs
                && cap.is_none_or(|cap| model.most(ask.prompt) <= cap)
        };
        let fitting: Vec<_> = models.into_iter().filter(fits).collect();
        if fitting.is_empty() {
            let why = "no model of the route takes it: for its pictures, its length or its price";
            return Err(invalid(why.into()));
        }
        Ok(fitting)
    }

    /// The failure, and whether words of the answer have been heard.
    async fn ask_one(
        &self,
        ask: &ModelAsk<'_>,
        mut trial: Trial<'_>,
        purse: &Arc<dyn Purse>,
        sink: Option<&mpsc::Sender<AnswerDelta>>,
        deadline: Instant,
        spent: &mut Spent,
    ) -> Result<wire::ModelAnswer, (Failure, bool)> {
        let model = trial.model;
        let _place = match model.provider.place(deadline).await {
            Ok(place) => place,
            Err(failure) => return Err((failure, false)),
        };
        let most = model.most(ask.prompt);
        let call = spent.calls;
        purse.reserve(call, &model.name, most).await.map_err(|failure| (failure, false))?;
        spent.calls += 1;
        let mut bill = Unsettled {
            purse: purse.clone(),
            call,
            model,
            input: ask.prompt.tokens(model.image_tokens),
            progress: AnswerProgress::default(),
            is_settled: false,
        };
        let started = Instant::now();
        let (client, target) = (&self.client, &model.target);
        let progress = &mut bill.progress;
        let asked =
            wire::call(client, target, ask.prompt, self.clocks, deadline, sink, progress).await;
        let is_heard = bill.progress.is_heard;
        let failure = asked.as_ref().err().map(|failure| failure.kind);
        let (usage, cost) = bill.settle(failure).await;
        spent.usage += usage;
        spent.cost = spent.cost.saturating_add(cost);
        trial.end(asked.as_ref().err(), self.now_ms());
        let outcome = failure.map_or("ok", FailureKind::as_str);
        metrics::counter!("proxie_model_calls_total", "model" => model.name.to_string(), "outcome" => outcome)
            .increment(1);
        metrics::histogram!("proxie_model_call_seconds", "model" => model.name.to_string())
            .record(started.elapsed().as_secs_f64());
        asked.map_err(|failure| (failure, is_heard))
    }
}

fn client() -> Result<Client, String> {
    // What reqwest takes; the cluster's own connections name theirs.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let web = reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(5))
        .pool_idle_timeout(Duration::from_secs(60))
        .tcp_nodelay(true)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .map_err(|error| format!("no client for models: {error}"))?;
    Client::builder().with_reqwest(web).build().map_err(|error| error.to_string())
}

/// A call that its model's circuit breaker has admitted, and is told the end of.
pub(super) struct Trial<'a> {
    pub model: &'a Model,
    is_over: bool,
}

impl<'a> Trial<'a> {
    pub fn of(model: &'a Model) -> Self {
        Self { model, is_over: false }
    }

    pub fn end(&mut self, failure: Option<&Failure>, now_ms: i64) {
        self.is_over = true;
        let mut breaker = self.model.breaker.lock();
        match failure {
            None => breaker.succeeded(),
            Some(failure) if failure.kind.counts() => {
                let asked_for = failure.retry_after.map(|after| after.as_millis() as i64);
                let pause = match failure.kind {
                    FailureKind::Unauthorized | FailureKind::NoSuchModel => Some(REFUSED_PAUSE_MS),
                    _ => asked_for,
                };
                breaker.failed(now_ms, pause);
            }
            // It answers; it does not want this.
            Some(_) => breaker.abandoned(),
        }
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.model.breaker.lock().abandoned();
        }
    }
}

/// A call that has a reserve. However it ends, also by being dropped, its purse learns what it came to.
pub(super) struct Unsettled<'a> {
    pub purse: Arc<dyn Purse>,
    pub call: u32,
    pub model: &'a Model,
    /// The tokens of the question, as we count them.
    pub input: u64,
    pub progress: AnswerProgress,
    pub is_settled: bool,
}

impl Unsettled<'_> {
    fn bill(&self, failure: Option<FailureKind>) -> Bill {
        let usage = self.progress.usage(self.input);
        let cost = self.model.price.of(&usage);
        Bill { model: self.model.name.clone(), usage, cost, failure }
    }

    pub async fn settle(mut self, failure: Option<FailureKind>) -> (Usage, Cost) {
        let bill = self.bill(failure);
        let (usage, cost) = (bill.usage, bill.cost);
        let purse = self.purse.clone();
        let settled = purse.settle(self.call, bill);
        self.is_settled = true;
        settled.await;
        (usage, cost)
    }
}

impl Drop for Unsettled<'_> {
    fn drop(&mut self) {
        if self.is_settled {
            return;
        }
        let (purse, call) = (self.purse.clone(), self.call);
        let bill = self.bill(Some(FailureKind::Uncertain));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { purse.settle(call, bill).await });
        }
    }
}

#[derive(Default)]
pub(super) struct Spent {
    pub usage: Usage,
    pub cost: Cost,
    pub calls: u32,
}

impl Spent {
    pub fn failed(&self, failure: Failure, model: Option<Arc<str>>) -> ModelFailure {
        let Self { usage, cost, calls } = *self;
        ModelFailure { failure, model, usage, cost, calls_made: calls }
    }

    fn completion(&self, answer: wire::ModelAnswer, model: &str) -> Completion {
        Completion {
            text: answer.text,
            calls: answer.calls,
            stop: answer.stop,
            model: model.into(),
            usage: self.usage,
            cost: self.cost,
            calls_made: self.calls,
            cached: None,
        }
    }
}
