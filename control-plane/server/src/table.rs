//! Every route there is.

use http::Method;
use protocol::api::{
    AuditPage, BackedUp, Changes, Clear, CredentialDetail, CredentialSummary, Delete, Done, DryRun,
    EnrolToken, EnrolTokenIssued, Excuse, Force, Halt, Hold, HolderView, HostDetail, HostSummary, Import,
    Imported, Labels, NewOperator, OperatorIssued, OperatorView, PendingVersion, Reason, Role, RolloutView,
    Rotate, Rotated, Status, Unhold, Whoami, Why,
};
use protocol::enrol::{EnrolRequest, EnrolResponse, RenewRequest};
use protocol::frame::HEADER_BYTES;
use protocol::limit;

use crate::route::{Needs, Route};
use crate::{hosts, operate, read};

const VIEWER: Needs = Needs::Operator(Role::Viewer);
const OPERATOR: Needs = Needs::Operator(Role::Operator);
const ADMIN: Needs = Needs::Operator(Role::Admin);

/// An import is one whole value in base64.
const IMPORT_BYTES_MAX: usize = limit::SET_BYTES_MAX / 3 * 4 + 64 * 1024;

/// Every route there is.
pub fn table() -> Vec<Route> {
    let mut table = process();
    table.extend(host_routes());
    table.extend(views());
    table.extend(credential_changes());
    table.extend(host_changes());
    table.extend(operator_routes());
    table
}

/// The process itself.
fn process() -> Vec<Route> {
    vec![
        Route::new(Method::GET, "/healthz", Needs::Nothing, "The process answers", read::healthz)
            .answers_text(),
        Route::new(Method::GET, "/readyz", Needs::Nothing, "The engine answers", read::readyz).answers_text(),
        Route::new(
            Method::GET,
            "/metrics",
            Needs::Scraper,
            "Metrics in the OpenMetrics format",
            read::metrics,
        )
        .answers_text(),
    ]
}

/// What hosts call.
fn host_routes() -> Vec<Route> {
    vec![
        Route::new(Method::POST, "/v1/enroll", Needs::EnrolmentToken, "Become a host", hosts::enroll)
            .takes::<EnrolRequest>()
            .answers::<EnrolResponse>()
            .body_bytes_max(limit::ENROL_BYTES_MAX),
        Route::new(
            Method::POST,
            "/v1/renew",
            Needs::Host,
            "Renew a host's certificate, for the same key",
            hosts::renew,
        )
        .takes::<RenewRequest>()
        .answers::<EnrolResponse>()
        .body_bytes_max(limit::ENROL_BYTES_MAX),
        Route::new(
            Method::POST,
            "/v1/reports",
            Needs::Host,
            "One report frame; answered with its acknowledgement",
            hosts::report,
        )
        .exchanges_frames(HEADER_BYTES + limit::REPORT_BYTES_MAX),
    ]
}

/// What everybody with a role may see.
fn views() -> Vec<Route> {
    let get = |path, summary| (Method::GET, path, VIEWER, summary);
    macro_rules! view {
        ($path:literal, $summary:literal, $handler:expr, $answer:ty) => {{
            let (method, path, needs, summary) = get($path, $summary);
            Route::new(method, path, needs, summary, $handler).answers::<$answer>()
        }};
    }
    vec![
        view!("/v1/openapi.json", "This API", read::openapi, serde_json::Value),
        view!("/v1/whoami", "Who is asking", read::whoami, Whoami),
        view!("/v1/status", "The whole installation at one look", read::status, Status),
        view!("/v1/changes", "Wait for the next commit, 20 s at most", read::changes, Changes)
            .query(&[("after", "answer once there were more commits than this")]),
        view!("/v1/credentials", "All credentials", read::credentials, Vec<CredentialSummary>),
        view!("/v1/credentials/{name}", "One credential", read::credential, CredentialDetail),
        view!(
            "/v1/credentials/{name}/rollout",
            "The rollout under way, or null",
            read::rollout,
            Option<RolloutView>
        ),
        view!("/v1/credentials/{name}/versions/{version}/why", "What keeps a version alive", read::why, Why),
        view!(
            "/v1/pending",
            "Superseded versions that are not retired yet",
            read::pending,
            Vec<PendingVersion>
        ),
        view!("/v1/holders", "Who may have what", read::holders, Vec<HolderView>)
            .query(&[("credential", "only of this credential")]),
        view!("/v1/hosts", "All hosts", read::hosts, Vec<HostSummary>),
        view!("/v1/hosts/{host}", "One host, by id or name", read::host, HostDetail),
        view!("/v1/audit", "The audit log, oldest first", read::audit, AuditPage).query(&[
            ("after", "rows after this one"),
            ("limit", "at most so many, 1000 at most"),
            ("last", "so many of the newest rows instead, 1000 at most"),
            ("before", "with `last`: the newest of those before this row"),
            ("subject", "only of this subject, such as credential/orders-db"),
        ]),
    ]
}

macro_rules! change {
    ($method:ident $path:literal, $needs:expr, $summary:literal, $handler:expr, $take:ty, $answer:ty) => {
        Route::new(Method::$method, $path, $needs, $summary, $handler).takes::<$take>().answers::<$answer>()
    };
    ($method:ident $path:literal, $needs:expr, $summary:literal, $handler:expr, $answer:ty) => {
        Route::new(Method::$method, $path, $needs, $summary, $handler).answers::<$answer>()
    };
}

/// What changes credentials.
fn credential_changes() -> Vec<Route> {
    vec![
        change!(POST "/v1/credentials/{name}/rotate", OPERATOR, "Mint a new version and roll it out", operate::rotate, Rotate, Rotated),
        change!(POST "/v1/credentials/{name}/rotate/dry-run", VIEWER, "What a rotation would do", operate::rotate_dry_run, Rotate, DryRun),
        change!(POST "/v1/credentials/{name}/import", ADMIN, "Take an existing value as version 0", operate::import, Import, Imported)
            .body_bytes_max(IMPORT_BYTES_MAX),
        change!(POST "/v1/credentials/{name}/rollout/halt", OPERATOR, "Stop the rollout", operate::halt, Halt, Done),
        change!(POST "/v1/credentials/{name}/rollout/resume", OPERATOR, "Go on with a halted rollout", operate::resume, Done),
        change!(POST "/v1/credentials/{name}/rollout/abort", OPERATOR, "Give the new version up", operate::abort, Reason, Done),
        change!(POST "/v1/credentials/{name}/hold", OPERATOR, "A version must stay alive", operate::hold, Hold, Done),
        change!(POST "/v1/credentials/{name}/unhold", OPERATOR, "The end of a hold", operate::unhold, Unhold, Done),
        change!(POST "/v1/credentials/{name}/versions/{version}/retire", ADMIN, "Retire a version without waiting for the gate", operate::force, Force, Done),
        change!(DELETE "/v1/credentials/{name}", ADMIN, "Withdraw a credential everywhere and retire it", operate::delete, Delete, Done),
        change!(POST "/v1/holders/clear", OPERATOR, "A holder, gap or place is gone, on an operator's word", operate::clear, Clear, Done),
        change!(POST "/v1/sources/refresh", OPERATOR, "Look at all sources now", operate::refresh_all, Done),
        change!(POST "/v1/sources/{name}/refresh", OPERATOR, "Look at the source of this credential now", operate::refresh, Done),
    ]
}

/// What changes hosts.
fn host_changes() -> Vec<Route> {
    vec![
        change!(POST "/v1/hosts/enroll-token", ADMIN, "A token for one host to enrol with", hosts::enroll_token, EnrolToken, EnrolTokenIssued),
        // Labels decide who gets values, as an enrolment token does.
        change!(PUT "/v1/hosts/{host}/labels", ADMIN, "Replace a host's labels", hosts::label, Labels, Done),
        change!(POST "/v1/hosts/{host}/excuse", OPERATOR, "A host does not count for one version, until it reports", hosts::excuse, Excuse, Done),
        change!(POST "/v1/hosts/{host}/retire", ADMIN, "A host is gone for good", hosts::retire, Reason, Done),
    ]
}

/// Who may do what, and the store itself.
fn operator_routes() -> Vec<Route> {
    vec![
        change!(GET "/v1/operators", ADMIN, "Everybody who was ever let in", operate::operators, Vec<OperatorView>),
        change!(POST "/v1/operators", ADMIN, "Let somebody in", operate::add_operator, NewOperator, OperatorIssued),
        change!(DELETE "/v1/operators/{id}", ADMIN, "Let somebody in no more", operate::revoke_operator, Done),
        change!(POST "/v1/backup", ADMIN, "Write a copy of the store on the control plane's machine", operate::backup, BackedUp),
    ]
}
