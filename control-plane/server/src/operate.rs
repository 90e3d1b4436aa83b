//! Handlers that do what an operator asks.

use axum::Json;
use axum::extract::{Extension, Path, State};
use backends::SecretValue;
use http::Method;
use identity::Caller;
use lifecycle::Millis;
use protocol::UnixMillis;
use protocol::api::{
    BackedUp, Clear, ClearWhat, Delete, Done, DryRun, Force, Halt, Hold, Import, Imported, NewOperator,
    OperatorIssued, OperatorView, Reason, Role, Rotate, Rotated, Unhold,
};
use zeroize::Zeroizing;

use crate::answer::{Answer, Body, Failure};
use crate::app::App;
use crate::read::{credential_name, version};
use crate::route::tell_denied;

/// A shorter deadline leaves nobody the time to let go: it clears every holder unseen, as a forced retirement does, and
/// needs the role that one needs.
const DEADLINE_MS_MIN: u64 = 60_000;

/// The most characters of a reason.
const REASON_CHARS_MAX: usize = 500;

pub(crate) fn done(message: impl Into<String>) -> Json<Done> {
    Json(Done { message: message.into() })
}

/// A reason is kept in the audit log for ever: it says something, and not a novel.
pub(crate) fn reason(text: &str) -> Result<&str, Failure> {
    let text = text.trim();
    let plain = text.chars().all(|c| !c.is_control());
    if text.is_empty() || text.chars().count() > REASON_CHARS_MAX || !plain {
        let detail = format!("a reason is 1 to {REASON_CHARS_MAX} characters on one line");
        return Err(Failure::new(422, "reason", detail, "say in a sentence why"));
    }
    Ok(text)
}

pub(crate) async fn rotate(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    Body(wish): Body<Rotate>,
) -> Answer<Rotated> {
    let deadline = deadline(&wish)?;
    let name = credential_name(&name)?;
    if deadline.is_some_and(|deadline| deadline.0 < DEADLINE_MS_MIN) && !is_admin(&caller) {
        let detail = format!("a deadline of less than {DEADLINE_MS_MIN} ms needs the role admin");
        let failure = Failure::new(403, "short_deadline", detail, "name a longer deadline, or ask an admin");
        let path = format!("/v1/credentials/{name}/rotate");
        tell_denied(&app, &caller, &Method::POST, "/v1/credentials/{name}/rotate", &path, &failure).await;
        return Err(failure);
    }
    Ok(Json(app.handle.rotate(&caller.actor(), &name, wish.compromised, deadline).await?))
}

pub(crate) async fn rotate_dry_run(
    State(app): State<App>,
    Path(name): Path<String>,
    Body(wish): Body<Rotate>,
) -> Answer<DryRun> {
    deadline(&wish)?;
    Ok(Json(app.handle.rotate_dry_run(&credential_name(&name)?, wish.compromised).await?))
}

fn is_admin(caller: &Caller) -> bool {
    matches!(caller, Caller::Operator(operator) if operator.role == Role::Admin)
}

fn deadline(wish: &Rotate) -> Result<Option<Millis>, Failure> {
    if wish.deadline_ms.is_some() && !wish.compromised {
        let detail = "a deadline is only for a version in foreign hands";
        return Err(Failure::new(422, "deadline", detail, "add `compromised`, or leave the deadline out"));
    }
    Ok(wish.deadline_ms.map(Millis))
}

pub(crate) async fn import(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    Body(import): Body<Import>,
) -> Answer<Imported> {
    use base64::Engine as _;
    let mut value = SecretValue::new();
    for (field, content) in &import.fields {
        let content = base64::engine::general_purpose::STANDARD.decode(content).map(Zeroizing::new);
        let content = content.map_err(|_| {
            Failure::new(
                422,
                "base64",
                format!("the field {field} is not base64"),
                "encode it as RFC 4648 says, padded",
            )
        })?;
        value
            .insert(field.as_str(), content)
            .map_err(|error| Failure::new(422, "value", error.to_string(), "send a smaller value"))?;
    }
    if value.is_empty() {
        return Err(Failure::new(422, "value", "the value has no field", "name at least one field"));
    }
    Ok(Json(app.handle.import(&caller.actor(), &credential_name(&name)?, value).await?))
}

pub(crate) async fn halt(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    Body(halt): Body<Halt>,
) -> Answer<Done> {
    app.handle.halt(&caller.actor(), &credential_name(&name)?, reason(&halt.reason)?).await?;
    Ok(done("halted: targets that have not adopted go back"))
}

pub(crate) async fn resume(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Answer<Done> {
    app.handle.resume(&caller.actor(), &credential_name(&name)?).await?;
    Ok(done("resumed"))
}

pub(crate) async fn abort(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    Body(abort): Body<Reason>,
) -> Answer<Done> {
    app.handle.abort(&caller.actor(), &credential_name(&name)?, reason(&abort.reason)?).await?;
    Ok(done("aborted: all targets go back, then the new version is retired"))
}

pub(crate) async fn hold(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    Body(hold): Body<Hold>,
) -> Answer<Done> {
    let name = credential_name(&name)?;
    app.handle.hold(&caller.actor(), &name, hold.version, reason(&hold.reason)?).await?;
    Ok(done(format!("{name}@{} is held until `esoctl credential unhold`", hold.version)))
}

pub(crate) async fn unhold(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    Body(unhold): Body<Unhold>,
) -> Answer<Done> {
    let name = credential_name(&name)?;
    app.handle.unhold(&caller.actor(), &name, unhold.version).await?;
    Ok(done(format!("{name}@{} is not held any more", unhold.version)))
}

pub(crate) async fn force(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path((name, number)): Path<(String, String)>,
    Body(force): Body<Force>,
) -> Answer<Done> {
    if !force.force {
        let detail = "retiring a version without its gate may break whoever still has it";
        return Err(Failure::new(
            422,
            "force",
            detail,
            "set `force`, or wait for the gate: see `esoctl why`",
        ));
    }
    let (name, version) = (credential_name(&name)?, version(&number)?);
    app.handle.force(&caller.actor(), &name, version, reason(&force.reason)?).await?;
    Ok(done(format!("{name}@{version} is being retired without its gate")))
}

pub(crate) async fn delete(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    Body(delete): Body<Delete>,
) -> Answer<Done> {
    let name = credential_name(&name)?;
    app.handle.delete(&caller.actor(), &name, reason(&delete.reason)?).await?;
    Ok(done(format!("{name} is being withdrawn; its versions are retired as their gates pass")))
}

pub(crate) async fn clear(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Body(clear): Body<Clear>,
) -> Answer<Done> {
    let (actor, why) = (caller.actor(), reason(&clear.reason)?);
    match clear.what {
        ClearWhat::Holder(holder) => {
            app.handle.clear_holder(&actor, &clear.credential, clear.target, holder, why).await?;
        }
        ClearWhat::Gap(gap) => {
            app.handle.clear_gap(&actor, &clear.credential, clear.target, gap, why).await?;
        }
    }
    Ok(done("cleared; it covers no later one"))
}

pub(crate) async fn refresh(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Answer<Done> {
    app.handle.refresh(&caller.actor(), Some(&credential_name(&name)?)).await?;
    Ok(done("the source is asked now"))
}

pub(crate) async fn refresh_all(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
) -> Answer<Done> {
    let asked = app.handle.refresh(&caller.actor(), None).await?;
    Ok(done(match asked {
        1 => "1 source is asked now".to_owned(),
        asked => format!("{asked} sources are asked now"),
    }))
}

pub(crate) async fn operators(State(app): State<App>) -> Answer<Vec<OperatorView>> {
    Ok(Json(app.identities.operators().await?))
}

pub(crate) async fn add_operator(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Body(new): Body<NewOperator>,
) -> Answer<OperatorIssued> {
    Ok(Json(app.identities.add_operator(&new, &caller.actor(), UnixMillis::now()).await?))
}

pub(crate) async fn revoke_operator(
    State(app): State<App>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Answer<Done> {
    match app.identities.revoke_operator(&id, &caller.actor(), UnixMillis::now()).await {
        Ok(true) => Ok(done("revoked")),
        Ok(false) => Err(Failure::new(
            404,
            "not_found",
            "there is no such operator, or it was revoked before",
            "see `esoctl operator list`",
        )),
        Err(error @ store::StoreError::LastOf { .. }) => Err(Failure::new(
            409,
            "last_admin",
            format!("{error}: without it nobody could let anybody in"),
            "let another one in first with `esoctl operator add NAME --role admin`, then revoke this one",
        )),
        Err(error) => Err(error.into()),
    }
}

pub(crate) async fn backup(State(app): State<App>, Extension(caller): Extension<Caller>) -> Answer<BackedUp> {
    let now = UnixMillis::now();
    let file = crate::backup::next_file(&app.backups, now)
        .map_err(|error| Failure::new(500, "backup", error.to_string(), "check the data directory"))?;
    app.store.backup(file.clone()).await?;
    let file = file.display().to_string();
    app.audit(&caller.actor(), "backup", "store", &file).await;
    Ok(Json(BackedUp { file }))
}
