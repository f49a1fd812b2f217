//! `/v1` and what is around it.

use std::collections::BTreeSet;
use std::time::Duration;

use proxie::kernel::clock::Clock;
use proxie::kernel::entity::Role;
use serde_json::{Value, json};

use super::{TestNode, connect, hairdresser, id, text};

fn in_days(days: i64, minutes: i64) -> String {
    let at = Clock::System.now() + Duration::from_secs((days * 86_400 + minutes * 60) as u64);
    jiff::Timestamp::from_second(at.as_second()).unwrap().to_string()
}

fn haircut(starts_at: &str) -> Value {
    json!({"service": "haircut", "place": "Alexanderplatz, Berlin", "starts_at": starts_at})
}

/// The pointers of a problem's errors.
fn pointers(problem: &Value) -> Vec<String> {
    let errors = problem["errors"].as_array().unwrap_or_else(|| panic!("no errors: {problem}"));
    assert!(errors.iter().all(|e| e["message"].as_str().is_some_and(|m| !m.is_empty())));
    errors.iter().map(|e| text(&e["pointer"])).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_names_scopes_is_for_the_operations_that_take_them() {
    let node = TestNode::start().await;
    let auth = &node.node.gateway().auth;
    let token = |scope: &str| {
        auth.mint_for("alice", Role::Operator, None, Some(scope), node.clock.now(), 3_600)
    };
    let operations: Vec<_> = proxie::systems::ALL
        .iter()
        .flat_map(|system| system.operations)
        .map(|one| one.meta)
        .collect();
    assert!(operations.len() > 40);
    let mut http = node.anonymous();
    http.token = Some(token("nothing that there is"));
    let mut ws = connect(node.node.address, http.token.as_ref().unwrap()).await;
    for meta in &operations {
        let reply = ws.ask_as(&id(), &meta.event(), json!({})).await;
        assert_eq!(reply["error"]["code"], "forbidden", "{}: {reply}", meta.name);
        assert_eq!(reply["error"]["reason"], "insufficient_scope", "{}", meta.name);
        for route in meta.routes() {
            let path: Vec<&str> = route
                .path
                .split('/')
                .map(|part| {
                    if part == "{user_id}" {
                        "me"
                    } else if part.starts_with('{') {
                        "x"
                    } else {
                        part
                    }
                })
                .collect();
            let method = route.method.as_str().to_uppercase();
            let body: &[u8] = if method == "GET" { b"" } else { b"{}" };
            let json = [("content-type", "application/json"), ("if-match", "\"1\"")];
            let answer = http.send(&method, &path.join("/"), &json, body).await;
            answer.problem(403, "forbidden");
            let asks =
                format!("Bearer error=\"insufficient_scope\", scope=\"{}\"", meta.takes_scope());
            assert_eq!(answer.headers["www-authenticate"], asks, "{}", meta.name);
        }
    }
    // Each by itself is enough for its own operations.
    for scope in operations.iter().map(|meta| meta.takes_scope()).collect::<BTreeSet<_>>() {
        let mut ws = connect(node.node.address, &token(scope)).await;
        for meta in &operations {
            let reply = ws.ask_as(&id(), &meta.event(), json!({})).await;
            let refused = reply["error"]["reason"] == "insufficient_scope";
            assert_eq!(refused, meta.takes_scope() != scope, "{} with {scope}: {reply}", meta.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_good_token_nothing_is_shown() {
    let node = TestNode::start().await;
    let mut client = node.anonymous();
    let good = node.token("alice", Role::Consumer, 3_600);
    let expired = node.node.gateway().auth.mint(
        "alice",
        Role::Consumer,
        jiff::Timestamp::from_second(1_000_000_000).unwrap(),
        60,
    );
    let swapped = format!("{}A", &good[..good.len() - 6]);
    for token in [None, Some("nonsense".to_owned()), Some(expired), Some(swapped)] {
        client.token = token;
        for path in [
            "/v1/requests",
            "/v1/requests/req_1",
            "/v1/requests/req_1/offers",
            "/v1/bookings",
            "/v1/bookings/bkg_1",
            "/v1/providers",
            "/v1/sessions/ses_1/messages",
            "/v1/nothing",
        ] {
            let answer = client.get(path).await;
            answer.problem(401, "unauthenticated");
            assert!(answer.headers["www-authenticate"].starts_with("Bearer"));
        }
        client.post("/v1/requests", &json!({})).await.problem(401, "unauthenticated");
    }
    client.token = Some(good);
    assert_eq!(client.get("/v1/requests").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_and_what_is_malformed_is_a_problem() {
    let node = TestNode::with(|config| config.gateway.max_body_bytes = 2_048).await;
    let alice = node.user("alice");
    node.anonymous().get("/nothing").await.problem(404, "not_found");
    alice.get("/v1/nothing").await.problem(404, "not_found");
    let answer = alice.send("DELETE", "/v1/requests", &[], b"").await;
    answer.problem(405, "bad_request");
    assert!(answer.headers["allow"].contains("POST"), "{:?}", answer.headers);
    alice.get("/v1/requests/req_%00").await.problem(404, "not_found");
    alice.get("/v1/requests/%ff").await.problem(404, "not_found");

    let json_type = [("content-type", "application/json")];
    let post = |body: &'static [u8]| {
        let alice = alice.clone();
        async move { alice.send("POST", "/v1/requests", &json_type, body).await }
    };
    for bad in [&b"{"[..], b"nonsense", b"{\"text\": \"a\" \"b\"}", b"\xff"] {
        post(bad).await.problem(400, "bad_request");
    }
    let deep = format!("{}1{}", r#"{"a":"#.repeat(65), "}".repeat(65));
    for unreadable in [
        r#"{"text": "a haircut\u0000"}"#,
        r#"{"text": "a haircut\ud800"}"#,
        r#"{"text": "a haircut", "budget": 1e999}"#,
        r#"{"text": "a haircut", "text": "a massage"}"#,
        r#"{"place": {"latitude": 52.5, "longitude": 13.4, "latitude": 48.1}}"#,
        &deep,
    ] {
        let answer = alice.send("POST", "/v1/requests", &json_type, unreadable.as_bytes()).await;
        answer.problem(400, "bad_request");
    }
    post(b"[]").await.problem(400, "bad_request");
    let text = [("content-type", "text/plain")];
    alice.send("POST", "/v1/requests", &text, b"{}").await.problem(415, "bad_request");

    let body = json!({"text": "x".repeat(2_100)});
    alice.post("/v1/requests", &body).await.problem(413, "too_large");
    let key = [("idempotency-key", "not a key"), json_type[0]];
    alice.send("POST", "/v1/requests", &key, b"{}").await.problem(400, "bad_request");

    let given = [("x-request-id", "my-id.7")];
    assert_eq!(
        alice.send("GET", "/v1/bookings", &given, b"").await.headers["x-request-id"],
        "my-id.7"
    );
    let given = [("x-request-id", "<script>")];
    assert_ne!(
        alice.send("GET", "/healthz", &given, b"").await.headers["x-request-id"],
        "<script>"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_wrong_field_is_named() {
    let node = TestNode::start().await;
    let alice = node.user("alice");
    let refuse = |body: Value| {
        let alice = alice.clone();
        async move {
            let answer = alice.post("/v1/requests", &body).await;
            assert!(matches!(answer.status, 400 | 422), "{}", answer.text);
            answer.problem(
                answer.status,
                if answer.status == 400 { "bad_request" } else { "rejected" },
            )
        }
    };
    assert_eq!(
        pointers(&refuse(json!({"service": "flying", "starts_at": "soon", "budget": 7})).await),
        ["/budget", "/service", "/starts_at"]
    );
    let missing = pointers(&refuse(json!({})).await);
    for pointer in ["/service", "/place", "/earliest", "/latest"] {
        assert!(missing.iter().any(|p| p == pointer), "{pointer} in {missing:?}");
    }
    let past = haircut("2001-01-01T10:00:00Z");
    assert_eq!(pointers(&refuse(past).await), ["/starts_at"]);
    assert_eq!(pointers(&refuse(json!({"text": "   "})).await), ["/text"]);
    // Words that are not understood are quoted, and what asks for nothing starts no search.
    for (sentence, quoted) in [
        ("a haircut on 31 November at 10 in Berlin", "31 November"),
        ("cleaning tomorrow at 10 in Berlin, 20 euros per hour", "20 euros per hour"),
        ("Don't book me a haircut tomorrow at 5 pm in Berlin", "does not ask for a service"),
    ] {
        let refused = refuse(json!({"text": sentence, "time_zone": "Europe/Berlin"})).await;
        assert!(refused.to_string().contains(quoted), "{refused}");
    }
    let zone = json!({"text": "a haircut tomorrow at 5 pm in Berlin", "time_zone": "Mars/Base"});
    assert_eq!(pointers(&refuse(zone).await), ["/time_zone"]);
    alice
        .post("/v1/requests", &json!({"text": "a haircut", "user_id": "bob"}))
        .await
        .problem(403, "forbidden");
    node.user("x").post("/v1/providers", &hairdresser()).await.problem(403, "forbidden");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_a_sentence_to_a_booking_and_back() {
    let node = TestNode::start().await;
    let provider = node.hairdresser().await;
    let (alice, bob) = (node.user("alice"), node.user("bob"));
    let sentence = json!({
        "text": "I need a haircut tomorrow at 5 pm near Alexanderplatz in Berlin, up to 60 euros",
        "time_zone": "Europe/Berlin",
    });
    let created = alice.post("/v1/requests", &sentence).await;
    assert_eq!(created.status, 201, "{}", created.text);
    let request = created.json();
    let request_id = text(&request["id"]);
    assert_eq!(created.headers["location"], format!("/v1/requests/{request_id}"));
    assert_eq!(request["service"], "haircut");
    assert_eq!(request["budget"], json!({"amount_minor": 6_000, "currency": "EUR"}));
    let theirs = bob.post("/v1/requests", &sentence).await.json();
    assert_ne!(theirs["id"], request["id"]);

    let offer = alice.offer(&request_id).await;
    assert_eq!(offer["provider"]["id"], provider.as_str());
    assert_eq!(offer["starts_at"], request["earliest"]);
    let accept = format!("/v1/offers/{}/accept", text(&offer["id"]));
    let their_offer = bob.offer(&text(&theirs["id"])).await;

    // To others it does not exist.
    for path in [
        format!("/v1/requests/{request_id}"),
        format!("/v1/requests/{request_id}/offers"),
        format!("/v1/offers/{}", text(&offer["id"])),
    ] {
        assert_eq!(alice.get(&path).await.status, 200, "{path}");
        bob.get(&path).await.problem(404, "not_found");
    }
    bob.post(&accept, &json!({})).await.problem(404, "not_found");
    bob.post(&format!("/v1/requests/{request_id}/cancel"), &json!({}))
        .await
        .problem(404, "not_found");

    let accepted = alice.post(&accept, &json!({})).await;
    assert_eq!(accepted.status, 200, "{}", accepted.text);
    let booking_id = text(&accepted.json()["booking_id"]);
    let path = format!("/v1/bookings/{booking_id}");
    let booking = alice.get(&path).await.json();
    assert_eq!(
        (&booking["status"], &booking["starts_at"]),
        (&json!("confirmed"), &offer["starts_at"])
    );
    assert_eq!(node.user("pat").get(&path).await.status, 200, "the provider is a party");
    bob.get(&path).await.problem(404, "not_found");
    bob.post(&format!("{path}/cancel"), &json!({})).await.problem(404, "not_found");
    let again = alice.post(&accept, &json!({})).await;
    assert_eq!((again.status, again.json()), (200, accepted.json()), "one offer, one booking");

    // The slot is taken, until it is given back.
    let late = format!("/v1/offers/{}/accept", text(&their_offer["id"]));
    let problem = bob.post(&late, &json!({})).await.problem(409, "conflict");
    assert!(problem["reason"].is_string(), "{problem}");
    let cancelled = alice.post(&format!("{path}/cancel"), &json!({"reason": "ill"})).await;
    assert_eq!(cancelled.status, 200, "{}", cancelled.text);
    assert_eq!(cancelled.json()["status"], "cancelled");
    let again = text(&bob.post("/v1/requests", &sentence).await.json()["id"]);
    let offer_again = bob.offer(&again).await;
    assert_eq!(offer_again["starts_at"], offer["starts_at"]);
    let accept = format!("/v1/offers/{}/accept", text(&offer_again["id"]));
    let answer = bob.post(&accept, &json!({})).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(alice.get("/v1/bookings").await.json()["items"].as_array().unwrap().len(), 1);
    assert_eq!(bob.get("/v1/bookings").await.json()["items"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idempotency_key_has_one_effect() {
    let node = TestNode::start().await;
    let alice = node.user("alice");
    let sentence = json!({"text": "a haircut tomorrow at 5 pm near Alexanderplatz in Berlin"});
    for body in [sentence.clone(), haircut(&in_days(3, 0))] {
        let key = id();
        let (first, twin) = tokio::join!(
            alice.post_as(&key, "/v1/requests", &body),
            alice.post_as(&key, "/v1/requests", &body)
        );
        assert_eq!((first.status, twin.status), (201, 201), "{} {}", first.text, twin.text);
        assert_eq!(first.json()["id"], twin.json()["id"]);
        let later = alice.post_as(&key, "/v1/requests", &body).await;
        assert_eq!((later.status, later.json()), (201, first.json()));
        let other = haircut(&in_days(4, 0));
        alice.post_as(&key, "/v1/requests", &other).await.problem(422, "id_reused");
        // Keys belong to their user.
        let bobs = node.user("bob").post_as(&key, "/v1/requests", &body).await;
        assert_eq!(bobs.status, 201);
        assert_ne!(bobs.json()["id"], first.json()["id"]);
    }
    assert_eq!(alice.get("/v1/requests").await.json()["items"].as_array().unwrap().len(), 2);

    let session = text(&alice.post("/v1/sessions", &json!({})).await.json()["id"]);
    let path = format!("/v1/sessions/{session}/messages");
    let key = id();
    let sent = alice.post_as(&key, &path, &json!({"content": "hello"})).await;
    assert_eq!(sent.status, 201, "{}", sent.text);
    assert_eq!(alice.post_as(&key, &path, &json!({"content": "hello"})).await.json(), sent.json());
    alice.post_as(&key, &path, &json!({"content": "bye"})).await.problem(422, "id_reused");
    let said = alice.get(&path).await.json();
    let mine = said["items"].as_array().unwrap().iter().filter(|m| m["role"] == "user").count();
    assert_eq!(mine, 1, "{said}");
    let bob = node.user("bob");
    bob.get(&path).await.problem(404, "not_found");
    bob.post(&path, &json!({"content": "hello"})).await.problem(404, "not_found");
    alice.get("/v1/sessions/ses_nobody/messages").await.problem(404, "not_found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_go_on_where_they_ended() {
    let node = TestNode::start().await;
    let alice = node.user("alice");
    let mut made = Vec::new();
    for n in 0..5 {
        let answer = alice.post("/v1/requests", &haircut(&in_days(3, n * 60))).await;
        made.push(text(&answer.json()["id"]));
    }
    made.reverse();
    let (mut seen, mut cursor, mut sizes) = (Vec::new(), String::new(), Vec::new());
    loop {
        let page = alice.get(&format!("/v1/requests?limit=2&cursor={cursor}")).await.json();
        let items = page["items"].as_array().unwrap();
        sizes.push(items.len());
        seen.extend(items.iter().map(|item| text(&item["id"])));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = next.to_owned(),
            None => break,
        }
    }
    assert_eq!((seen, sizes), (made, vec![2, 2, 1]));
    let empty = node.user("bob").get("/v1/requests").await.json();
    assert_eq!(empty, json!({"items": [], "next_cursor": null}));
    for (query, pointer) in [
        ("limit=0", "/limit"),
        ("limit=x", "/limit"),
        ("limit=101", "/limit"),
        ("cursor=zz", "/cursor"),
    ] {
        let problem = alice.get(&format!("/v1/requests?{query}")).await.problem(400, "bad_request");
        assert_eq!(pointers(&problem), [pointer]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn providers_are_edited_by_version() {
    let node = TestNode::start().await;
    let pat = node.user_as("pat", Role::Provider);
    let created = pat.post("/v1/providers", &hairdresser()).await;
    let path = format!("/v1/providers/{}", text(&created.json()["id"]));
    let shown = pat.get(&path).await;
    let tag = shown.headers["etag"].clone();
    assert_eq!(created.headers["etag"], tag);
    assert_eq!(shown.json()["owner_id"], "pat");
    let seen = pat.send("GET", &path, &[("if-none-match", &tag)], b"").await;
    assert_eq!((seen.status, seen.text.as_str()), (304, ""));
    let edit = |client: super::Http, tag: Option<String>, body: Value| {
        let path = path.clone();
        async move {
            let mut headers = vec![("content-type", "application/json")];
            headers.extend(tag.as_deref().map(|tag| ("if-match", tag)));
            client.send("PATCH", &path, &headers, body.to_string().as_bytes()).await
        }
    };
    let name = |name: &str| json!({ "name": name });
    edit(pat.clone(), None, name("Alex II")).await.problem(428, "bad_request");
    let edited = edit(pat.clone(), Some(tag.clone()), name("Alex II")).await;
    assert_eq!(
        (edited.status, &edited.json()["name"]),
        (200, &json!("Alex II")),
        "{}",
        edited.text
    );
    assert_ne!(edited.headers["etag"], tag);
    edit(pat.clone(), Some(tag.clone()), name("Alex III")).await.problem(412, "conflict");
    assert_eq!(edit(pat.clone(), Some("*".into()), name("Alex IV")).await.status, 200);
    let wrong = edit(pat.clone(), Some("*".into()), json!({"radius_km": "far"})).await;
    assert_eq!(pointers(&wrong.problem(400, "bad_request")), ["/radius_km"]);

    // Providers are public, so whose they are is no secret to be kept by a 404.
    let eve = node.user_as("eve", Role::Provider);
    edit(eve.clone(), Some("*".into()), name("Eve's")).await.problem(403, "forbidden");
    let public = eve.get(&path).await.json();
    assert_eq!((&public["name"], public.get("owner_id")), (&json!("Alex IV"), None));
    let listed = eve.get("/v1/providers?service=haircut&city=Berlin").await.json();
    assert_eq!(listed["items"].as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(eve.get("/v1/providers?owner=me").await.json()["items"], json!([]));
    eve.get("/v1/providers?service=flying").await.problem(400, "bad_request");
    eve.get("/v1/providers/prv_nobody").await.problem(404, "not_found");
    let incomplete =
        pat.post("/v1/providers", &json!({"name": "X"})).await.problem(400, "bad_request");
    assert_eq!(pointers(&incomplete), ["/services", "/base"]);
}

/// As RFC 9110 compares tags: weakly to save an answer, strongly to edit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entity_tags_come_in_every_form() {
    let node = TestNode::start().await;
    let pat = node.user_as("pat", Role::Provider);
    let created = pat.post("/v1/providers", &hairdresser()).await;
    let path = format!("/v1/providers/{}", text(&created.json()["id"]));
    for (tags, status) in [
        (&["\"1\""][..], 304),
        (&["W/\"1\""], 304),
        (&["*"], 304),
        (&["\"0\", W/\"9\" ,\"1\""], 304),
        (&["\"0\"", "\"1\""], 304),
        (&["\"2\""], 200),
        (&["1"], 200),
        (&["\"a,1\", \"a,\"1,\""], 200),
        (&[], 200),
    ] {
        let headers: Vec<_> = tags.iter().map(|tag| ("if-none-match", *tag)).collect();
        let seen = pat.send("GET", &path, &headers, b"").await;
        assert_eq!((seen.status, seen.text.is_empty()), (status, status == 304), "{tags:?}");
        assert_eq!(seen.headers["etag"], "\"1\"", "{tags:?}");
    }
    let many = (100..200).map(|n| format!("\"{n}\"")).collect::<Vec<_>>().join(",");
    let mut version = 1;
    for (tags, status) in [
        (&["\"1\""][..], 200),
        (&["\"1\""], 412),
        (&["\"1\", \"2\""], 200),
        (&["\"3\",\"1\""], 200),
        (&["\"9\"", "\"4\""], 200),
        (&["\"1\", \"4\""], 412),
        (&["W/\"5\""], 412),
        (&["5"], 412),
        (&["\"+5\""], 412),
        (&["\"05\""], 412),
        (&["\"\""], 412),
        (&["\"0\""], 412),
        (&["*"], 200),
        (&[&many], 400),
        (&[], 428),
    ] {
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(tags.iter().map(|tag| ("if-match", *tag)));
        let body = json!({"name": format!("Alex {version} {}", tags.len())}).to_string();
        let edited = pat.send("PATCH", &path, &headers, body.as_bytes()).await;
        assert_eq!(edited.status, status, "{tags:?}: {}", edited.text);
        if status == 200 {
            version += 1;
            assert_eq!(edited.headers["etag"], format!("\"{version}\""), "{tags:?}");
        }
    }
    assert_eq!(pat.get(&path).await.json()["version"], version);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_and_clients_find_what_they_need() {
    let node = TestNode::start().await;
    let client = node.anonymous();
    for (path, kind, contains) in [
        ("/healthz", "application/json", "ok"),
        ("/readyz", "application/json", "ready"),
        ("/metrics", "text/plain", "proxie_http_requests_total"),
        ("/docs", "text/html", "/v1/requests"),
        ("/", "text/html", "Proxie"),
        ("/asyncapi.json", "application/json", "session:resume"),
        ("/docs/errors/id_reused", "text/html", "id_reused"),
    ] {
        let answer = client.get(path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.headers["content-type"].starts_with(kind), "{path}");
        assert!(answer.text.contains(contains), "{path}");
    }
    let key = client.get("/.well-known/jwks.json").await.json()["keys"][0].clone();
    assert_eq!((&key["kty"], &key["crv"]), (&json!("OKP"), &json!("Ed25519")));
    assert!(key["x"].is_string() && key["kid"].is_string() && key.get("d").is_none(), "{key}");

    let document = client.get("/openapi.json").await.json();
    assert!(text(&document["openapi"]).starts_with("3.1."));
    assert!(document["info"]["title"].is_string() && document["info"]["version"].is_string());
    for (path, methods) in [
        ("/v1/requests", &["get", "post"][..]),
        ("/v1/requests/{id}", &["get"]),
        ("/v1/requests/{id}/cancel", &["post"]),
        ("/v1/requests/{id}/offers", &["get"]),
        ("/v1/offers/{id}", &["get"]),
        ("/v1/offers/{id}/accept", &["post"]),
        ("/v1/offers/{id}/decline", &["post"]),
        ("/v1/bookings", &["get"]),
        ("/v1/bookings/{id}", &["get"]),
        ("/v1/bookings/{id}/cancel", &["post"]),
        ("/v1/bookings/{id}/review", &["post"]),
        ("/v1/bookings/{id}/no-show", &["post"]),
        ("/v1/providers", &["get", "post"]),
        ("/v1/providers/{id}", &["get", "patch"]),
        ("/v1/sessions", &["get", "post"]),
        ("/v1/sessions/{id}", &["get"]),
        ("/v1/sessions/{id}/messages", &["get", "post"]),
        ("/healthz", &["get"]),
        ("/readyz", &["get"]),
        ("/metrics", &["get"]),
    ] {
        for method in methods {
            let operation = &document["paths"][path][method];
            assert!(operation["operationId"].is_string(), "{method} {path}");
            assert!(
                operation["responses"].as_object().is_some_and(|r| !r.is_empty()),
                "{method} {path}"
            );
        }
    }
    // What is described is there, and every reference leads somewhere.
    let alice = node.user("alice");
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            // A stream does not end. One of a topic that is none does not begin either.
            let path = path.replace("{id}", "x").replace("/events", "/events?topic=none");
            let answer = alice.send(&method.to_uppercase(), &path, &[], b"").await;
            assert_ne!(answer.status, 405, "{method} {path}");
            assert!(!answer.text.contains("nothing at this path"), "{method} {path}");
        }
    }
    let whole = document.to_string();
    for reference in whole.split("\"$ref\":\"#").skip(1) {
        let pointer = reference.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer}");
    }

    let limits = alice.get("/v1/bookings").await;
    assert!(
        limits.headers.contains_key("ratelimit") && limits.headers.contains_key("ratelimit-policy")
    );
    node.node.gateway().readiness.drain();
    assert_eq!(client.get("/readyz").await.status, 503);
    assert_eq!(client.get("/healthz").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_requests_are_told_when_to_come_back() {
    let node = TestNode::with(|config| config.gateway.requests_per_minute = 5).await;
    let alice = node.user("alice");
    for _ in 0..5 {
        assert_eq!(alice.get("/v1/bookings").await.status, 200);
    }
    let answer = alice.get("/v1/bookings").await;
    answer.problem(429, "rate_limited");
    assert!((1..=60).contains(&answer.headers["retry-after"].parse::<u32>().unwrap()));
    assert_eq!(node.user("bob").get("/v1/bookings").await.status, 200);
}

/// Values at the ends of their types: refused or taken, never an error of ours, and never a provider that is broken
/// for others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extreme_values_break_nothing() {
    let node = TestNode::start().await;
    let (alice, pat) = (node.user("alice"), node.user_as("pat", Role::Provider));
    let fields = |more: Value| {
        let mut body = haircut(&in_days(3, 0));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let point = |latitude: f64, longitude: f64| json!({"place": {"latitude": latitude, "longitude": longitude, "time_zone": "Europe/Berlin"}});
    let mut failures = Vec::new();
    for body in [
        fields(json!({"starts_at": "9999-12-30T21:59:59Z"})),
        fields(json!({"starts_at": "-009999-01-02T01:59:59Z"})),
        fields(
            json!({"starts_at": null, "earliest": "9999-12-30T20:00:00Z", "latest": "9999-12-30T21:59:59Z"}),
        ),
        fields(json!({"starts_at": null, "earliest": in_days(9, 0), "latest": in_days(1, 0)})),
        fields(json!({"budget": {"amount_minor": i64::MAX, "currency": "EUR"}})),
        fields(json!({"budget": {"amount_minor": i64::MIN, "currency": "EUR"}})),
        fields(json!({"budget": {"amount_minor": 1, "currency": "€€€"}})),
        fields(json!({"details": "x".repeat(100_000)})),
        fields(json!({"time_zone": "x".repeat(10_000)})),
        fields(point(90.0, 180.0)),
        fields(point(-90.0, -180.0)),
        fields(point(1e300, 1e300)),
        fields(json!({"place": "x".repeat(50_000)})),
        json!({"text": "haircut in 99999999999999999999 days at 5 pm near Alexanderplatz in Berlin"}),
        json!({"text": "haircut in 4000000 weeks at 25 pm near Alexanderplatz in Berlin up to 99999999999999999999 euros"}),
        json!({"text": "haircut on 31.02.9999 at 5 pm near Alexanderplatz in Berlin"}),
        json!({"text": "haircut on 9999-12-31 at 11 pm near Alexanderplatz in Berlin", "time_zone": "Pacific/Honolulu"}),
        json!({"text": "İstanbul ﬁ ß \u{202e} 🦀🦀 haircut tomorrow at 5 pm near Alexanderplatz in Berlin 5🦀 pm"}),
        json!({"text": "€".repeat(3_000)}),
    ] {
        let answer = alice.post("/v1/requests", &body).await;
        if answer.status >= 500 {
            failures.push(format!("{} {}: {body:.200}", answer.status, answer.text));
        }
    }
    let profile = |more: Value| {
        let mut body = hairdresser();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let offering = |amount: i64, minutes: u32, per: &str| {
        json!({"services": [{
            "service": "haircut", "per": per, "duration_minutes": minutes,
            "price": {"amount_minor": amount, "currency": "EUR"},
        }]})
    };
    for body in [
        profile(json!({"radius_km": 1e308})),
        profile(json!({"radius_km": -1.0})),
        profile(json!({"minimum_notice_minutes": u32::MAX})),
        profile(json!({"max_discount_percent": 255})),
        profile(json!({"max_discount_percent": 100})),
        profile(json!({"days_off": ["9999-12-31", "-009999-01-01"]})),
        profile(json!({"weekly": {"monday": [{"from_minute": 65_535, "to_minute": 65_535}]}})),
        profile(json!({"weekly": {"monday": [{"from_minute": 900, "to_minute": 60}]}})),
        profile(offering(i64::MAX, 60, "hour")),
        profile(offering(i64::MAX, 65_535, "hour")),
        profile(offering(-1, 0, "service")),
        profile(offering(0, 65_535, "service")),
        profile(json!({"services": []})),
        profile(json!({"name": ""})),
        profile(json!({"languages": ["x".repeat(10_000)]})),
        profile(
            json!({"base": {"city": "", "country": "", "latitude": 91.0, "longitude": 181.0, "time_zone": "?"}}),
        ),
        profile(
            json!({"base": {"city": "x", "country": "DE", "latitude": 90.0, "longitude": 180.0, "time_zone": "UTC"}}),
        ),
    ] {
        let answer = pat.post("/v1/providers", &body).await;
        if answer.status >= 500 {
            failures.push(format!("{} {}: {body:.300}", answer.status, answer.text));
        }
    }
    let hex = |plain: &str| plain.bytes().map(|b| format!("{b:02x}")).collect::<String>();
    for cursor in ["-377705023201000000 x", "253402207200999999 x", "0 ", "0 '; drop table x"] {
        for path in ["/v1/requests", "/v1/providers", "/v1/bookings", "/v1/sessions"] {
            let answer = alice.get(&format!("{path}?cursor={}", hex(cursor))).await;
            if answer.status >= 500 {
                failures.push(format!("{} {path} {cursor}", answer.status));
            }
        }
    }
    for path in [
        "/v1/requests?limit=1&limit=2",
        "/v1/providers?city=%ff%00",
        "/v1/requests?%ff",
        "/v1/providers?city='",
    ] {
        let answer = alice.get(path).await;
        if answer.status >= 500 {
            failures.push(format!("{} {path}", answer.status));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    // With all that in the store, the main job still works.
    node.hairdresser().await;
    let made = alice.post("/v1/requests", &haircut(&in_days(3, 0))).await;
    alice.offer(&text(&made.json()["id"])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_without_a_length_and_without_an_end() {
    let node = TestNode::with(|config| {
        config.gateway.max_body_bytes = 2_048;
        config.gateway.request_timeout_ms = 800;
    })
    .await;
    let alice = node.user("alice");
    let chunked = format!("{:x}\r\n{{\"text\":\"{}\"}}\r\n0\r\n\r\n", 2_511, "x".repeat(2_500));
    let answer =
        alice.send_unmeasured("/v1/requests", "transfer-encoding: chunked", &chunked).await;
    answer.problem(413, "too_large");
    let answer = alice.send_unmeasured("/v1/requests", "content-length: 100", "{").await;
    answer.problem(504, "deadline_exceeded");
    let deep = "[".repeat(1_500);
    let headers = [("content-type", "application/json")];
    alice.send("POST", "/v1/requests", &headers, deep.as_bytes()).await.problem(400, "bad_request");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_allowed_origins_only() {
    let node = TestNode::with(|config| {
        config.gateway.allowed_origins = vec!["https://app.example".into()];
    })
    .await;
    let alice = node.user("alice");
    let preflight = |origin: &'static str| {
        let client = node.anonymous();
        async move {
            let headers = [
                ("origin", origin),
                ("access-control-request-method", "POST"),
                ("access-control-request-headers", "authorization,idempotency-key,content-type"),
            ];
            client.send("OPTIONS", "/v1/requests", &headers, b"").await
        }
    };
    let good = preflight("https://app.example").await;
    assert_eq!(good.status, 200, "a preflight carries no token");
    assert_eq!(good.headers["access-control-allow-origin"], "https://app.example");
    assert!(good.headers["access-control-allow-headers"].contains("idempotency-key"));
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
        assert!(good.headers["access-control-allow-methods"].contains(method), "{method}");
    }
    let bad = preflight("https://evil.example").await;
    assert!(!bad.headers.contains_key("access-control-allow-origin"));
    // Also an error can be read by a page that is allowed.
    let origin = [("origin", "https://app.example")];
    let answer = node.anonymous().send("GET", "/v1/bookings", &origin, b"").await;
    answer.problem(401, "unauthenticated");
    assert_eq!(answer.headers["access-control-allow-origin"], "https://app.example");
    assert!(node.try_ws(&[("origin", "https://app.example")]).await.is_ok());
    assert_eq!(node.try_ws(&[("origin", "https://evil.example")]).await.err(), Some(403));
    // A browser does not show a page why; whoever asks is told, wherever they come from.
    let ask =
        async |origin| node.anonymous().send("POST", "/v1/ws", &[("origin", origin)], b"").await;
    let refused = ask("https://evil.example").await;
    refused.problem(403, "forbidden");
    assert_eq!(refused.json()["reason"], "origin_not_allowed");
    assert_eq!(refused.headers["access-control-allow-origin"], "*");
    ask("https://app.example").await.problem(400, "bad_request");
    let head = alice.send("HEAD", "/healthz", &[], b"").await;
    assert_eq!((head.status, head.text.as_str()), (200, ""));
    let head = alice.send("HEAD", "/v1/bookings/bkg_nobody", &[], b"").await;
    assert_eq!((head.status, head.text.as_str()), (404, ""));
}

#[tokio::test]
async fn what_is_not_theirs_to_do_is_said_before_what_is_wrong_with_it() {
    let node = TestNode::start().await;
    let consumer = node.user("carl");
    let enrolled = consumer.post("/v1/providers", &json!({})).await;
    assert_eq!((enrolled.status, &enrolled.json()["code"]), (403, &json!("forbidden")));
    let provider = node.user_as("petra", Role::Provider).post("/v1/providers", &json!({})).await;
    assert_eq!(provider.status, 400);
    let path = "/v1/content/tt1/availability";
    let json = ("content-type", "application/json");
    let said = consumer.send("PUT", path, &[json], b"{}").await;
    assert_eq!((said.status, &said.json()["reason"]), (403, &json!("operators_only")));
}
