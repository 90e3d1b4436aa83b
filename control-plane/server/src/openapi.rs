//! The API as an OpenAPI 3.1 document, made from the table of routes and the types themselves.

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::route::{Content, Needs, Route, word};
use crate::table::table;

/// The whole document.
pub fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let problem = generator.subschema_for::<protocol::api::Problem>();
    let mut paths = Map::new();
    for route in table() {
        let operation = operation(&mut generator, &route);
        let methods = paths.entry(route.path).or_insert_with(|| json!({}));
        if let Value::Object(methods) = methods {
            methods.insert(route.method.as_str().to_lowercase(), operation);
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "eso-control-plane",
            "version": "v1",
            "summary": "Rotates credentials on many hosts at once; an old one is revoked when nobody holds it any more.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "responses": {
                "Problem": {
                    "description": "What went wrong, and what to do (RFC 9457)",
                    "content": { protocol::api::PROBLEM_CONTENT_TYPE: { "schema": problem } },
                },
            },
            "securitySchemes": {
                "certificate": { "type": "mutualTLS", "description": "A certificate of the built-in authority" },
                "token": { "type": "http", "scheme": "bearer", "description": "An operator's or scraper's token" },
            },
        },
    })
}

fn operation(generator: &mut SchemaGenerator, route: &Route) -> Value {
    let mut operation = json!({
        "summary": route.summary,
        "operationId": operation_id(route),
        "x-needs": needs(route.needs),
        "security": security(route.needs),
        "responses": {
            "200": answer(generator, route.answers),
            "default": { "$ref": "#/components/responses/Problem" },
        },
    });
    let parameters = parameters(route);
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(content) = content(generator, route.takes) {
        operation["requestBody"] = json!({ "required": true, "content": content });
    }
    operation
}

fn operation_id(route: &Route) -> String {
    let path = route.path.trim_start_matches("/v1/").trim_start_matches('/');
    let words = path.split(['/', '-', '.']).map(|word| word.trim_matches(['{', '}']));
    std::iter::once(route.method.as_str().to_lowercase())
        .chain(words.map(str::to_owned))
        .collect::<Vec<_>>()
        .join("_")
}

fn parameters(route: &Route) -> Vec<Value> {
    let in_path = route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let text = || json!({ "type": "string" });
    let in_path =
        in_path.map(|name| json!({ "name": name, "in": "path", "required": true, "schema": text() }));
    let in_query = route.query.iter().map(|(name, description)| {
        json!({ "name": name, "in": "query", "description": description, "schema": text() })
    });
    in_path.chain(in_query).collect()
}

fn content(generator: &mut SchemaGenerator, content: Content) -> Option<Value> {
    Some(match content {
        Content::Nothing => return None,
        Content::Json(schema) => json!({ protocol::api::JSON_CONTENT_TYPE: { "schema": schema(generator) } }),
        Content::Frames => {
            json!({ protocol::FRAMES_CONTENT_TYPE: { "schema": { "type": "string", "format": "binary" } } })
        }
        Content::Text => json!({ "text/plain": { "schema": { "type": "string" } } }),
    })
}

fn answer(generator: &mut SchemaGenerator, answers: Content) -> Value {
    match content(generator, answers) {
        None => json!({ "description": "Done" }),
        Some(content) => json!({ "description": "Done", "content": content }),
    }
}

fn needs(needs: Needs) -> String {
    match needs {
        Needs::Nothing => "nothing".to_owned(),
        Needs::EnrolmentToken => "enrolment token".to_owned(),
        Needs::Host => "host".to_owned(),
        Needs::Scraper => "scraper".to_owned(),
        Needs::Operator(role) => format!("role {}", word(role)),
    }
}

fn security(needs: Needs) -> Value {
    match needs {
        Needs::Nothing | Needs::EnrolmentToken => json!([]),
        Needs::Host => json!([{ "certificate": [] }]),
        Needs::Scraper | Needs::Operator(_) => json!([{ "certificate": [] }, { "token": [] }]),
    }
}
