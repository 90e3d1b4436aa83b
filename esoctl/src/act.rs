//! One function a command.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use clap::CommandFactory as _;
use lifecycle::{CredentialName, TargetId};
use protocol::UnixMillis;
use protocol::api::{
    AuditPage, BackedUp, Clear, ClearWhat, CredentialDetail, CredentialSummary, Done, DryRun, EnrolToken,
    EnrolTokenIssued, Excuse, Force, Hold, HolderView, HostDetail, HostSummary, Import, Imported, Labels,
    NewOperator, OperatorIssued, OperatorProof, OperatorView, PendingVersion, Reason, RolloutView, Rotate,
    Rotated, Status, Unhold, Whoami, Why,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::Streams;
use crate::cli::{self, Cli, Command, Format, LabelChange};
use crate::client::{Client, ClientError};
use crate::exit::Exit;
use crate::follow;
use crate::print::{print, say, write};
use crate::progress::Watched;
use crate::settings::Settings;
use crate::table::{Shown, name_hosts};

/// What the control plane gives at once.
const AUDIT_PAGE_ROWS: u64 = 1000;

/// What one command needs.
struct Act<'a, 'b> {
    client: Client,
    streams: &'a mut Streams<'b>,
    format: Format,
}

pub(crate) async fn act(cli: Cli, streams: &mut Streams<'_>) -> Result<Exit, ClientError> {
    if let Command::Completions { shell } = cli.command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "esoctl", &mut script);
        write(streams, &script)?;
        return Ok(Exit::Done);
    }
    let client = Client::new(Settings::read(&cli.connection)?)?;
    let mut act = Act { client, streams, format: cli.output };
    match cli.command {
        Command::Status(watch) => act.look::<Status>(&["status"], &watch).await,
        Command::Pending(watch) => act.look::<Vec<PendingVersion>>(&["pending"], &watch).await,
        Command::Credential(command) => act.credential(command).await,
        Command::Rollout(command) => act.rollout(command).await,
        Command::Holders(command) => act.holders(command).await,
        Command::Why { version: cli::NameAtVersion { name, version } } => {
            act.show::<Why>(&["credentials", name.as_str(), "versions", &version.to_string(), "why"]).await
        }
        Command::Host(command) => act.host(command).await,
        Command::Source(command) => act.source(command).await,
        Command::Audit(command) => act.audit(command).await,
        Command::Operator(command) => act.operator(command).await,
        Command::Backup => act.post::<BackedUp>(&["backup"], None::<&()>).await,
        Command::Whoami => act.show::<Whoami>(&["whoami"]).await,
        Command::Completions { .. } => Ok(Exit::Done),
    }
}

impl Act<'_, '_> {
    fn print<T: Serialize + Shown>(&mut self, value: &T) -> Result<Exit, ClientError> {
        print(self.streams, self.format, value)?;
        Ok(Exit::Done)
    }

    async fn show<T: DeserializeOwned + Serialize + Shown>(
        &mut self,
        path: &[&str],
    ) -> Result<Exit, ClientError> {
        let value: T = self.client.get(path).await?;
        self.print(&value)
    }

    async fn look<T: DeserializeOwned + Serialize + Shown>(
        &mut self,
        path: &[&str],
        watch: &cli::Watch,
    ) -> Result<Exit, ClientError> {
        if watch.watch {
            return follow::again_and_again::<T>(&self.client, self.streams, self.format, path).await;
        }
        self.show::<T>(path).await
    }

    async fn post<T: DeserializeOwned + Serialize + Shown>(
        &mut self,
        path: &[&str],
        body: Option<&impl Serialize>,
    ) -> Result<Exit, ClientError> {
        let value: T = self.client.post(path, body).await?;
        self.print(&value)
    }

    async fn credential(&mut self, command: cli::Credential) -> Result<Exit, ClientError> {
        match command {
            cli::Credential::List => self.show::<Vec<CredentialSummary>>(&["credentials"]).await,
            cli::Credential::Show { name } => {
                self.show::<CredentialDetail>(&["credentials", name.as_str()]).await
            }
            cli::Credential::Import { name, fields } => self.import(&name, &fields).await,
            cli::Credential::Rotate(rotate) => self.rotate(rotate).await,
            cli::Credential::Hold { version: cli::NameAtVersion { name, version }, reason } => {
                self.post::<Done>(&["credentials", name.as_str(), "hold"], Some(&Hold { version, reason }))
                    .await
            }
            cli::Credential::Unhold { version: cli::NameAtVersion { name, version } } => {
                self.post::<Done>(&["credentials", name.as_str(), "unhold"], Some(&Unhold { version })).await
            }
            cli::Credential::Delete { name, reason } => {
                let path = ["credentials", name.as_str()];
                let value: Done = self.client.delete(&path, Some(&Reason { reason })).await?;
                self.print(&value)
            }
            cli::Credential::Retire { version: cli::NameAtVersion { name, version }, force, reason } => {
                let version = version.to_string();
                let path = ["credentials", name.as_str(), "versions", &version, "retire"];
                self.post::<Done>(&path, Some(&Force { force, reason })).await
            }
        }
    }

    async fn import(
        &mut self,
        name: &CredentialName,
        fields: &[cli::FieldFile],
    ) -> Result<Exit, ClientError> {
        let mut import = Import { fields: BTreeMap::new() };
        for cli::FieldFile { field, file } in fields {
            let content = read_secret(file)?;
            import.fields.insert(field.clone(), base64::engine::general_purpose::STANDARD.encode(&*content));
        }
        self.post::<Imported>(&["credentials", name.as_str(), "import"], Some(&import)).await
    }

    async fn rotate(&mut self, rotate: cli::Rotate) -> Result<Exit, ClientError> {
        let name = &rotate.name;
        let wish =
            Rotate { compromised: rotate.compromised, deadline_ms: rotate.deadline.map(|span| span.ms) };
        if rotate.dry_run {
            let path = ["credentials", name.as_str(), "rotate", "dry-run"];
            let value: DryRun = self.client.post(&path, Some(&wish)).await?;
            self.print(&value)?;
            return Ok(if value.accepted { Exit::Done } else { Exit::Refused });
        }
        let path = ["credentials", name.as_str()];
        let before: Option<CredentialDetail> =
            if rotate.watch { Some(self.client.get(&path).await?) } else { None };
        let path = ["credentials", name.as_str(), "rotate"];
        let value: Rotated = self.client.post(&path, Some(&wish)).await?;
        self.print(&value)?;
        let Some(before) = before else { return Ok(Exit::Done) };
        let watched = Watched::new(&before, rotate.until).of(value.version);
        let timeout = rotate.timeout.map(|span| Duration::from_millis(span.ms));
        follow::rotation(&self.client, self.streams, name, watched, timeout).await
    }

    async fn rollout(&mut self, command: cli::Rollout) -> Result<Exit, ClientError> {
        match command {
            cli::Rollout::Show { name, watch } => {
                self.look::<Option<RolloutView>>(&["credentials", name.as_str(), "rollout"], &watch).await
            }
            cli::Rollout::Halt { name, reason } => {
                let path = ["credentials", name.as_str(), "rollout", "halt"];
                self.post::<Done>(&path, Some(&Reason { reason })).await
            }
            cli::Rollout::Resume { name } => {
                self.post::<Done>(&["credentials", name.as_str(), "rollout", "resume"], None::<&()>).await
            }
            cli::Rollout::Abort { name, reason } => {
                let path = ["credentials", name.as_str(), "rollout", "abort"];
                self.post::<Done>(&path, Some(&Reason { reason })).await
            }
        }
    }

    async fn holders(&mut self, command: cli::Holders) -> Result<Exit, ClientError> {
        match command {
            cli::Holders::List { credential } => {
                let query: Vec<_> = credential.iter().map(|name| ("credential", name.to_string())).collect();
                let value: Vec<HolderView> = self.client.query(&["holders"], &query).await?;
                self.print(&value)
            }
            cli::Holders::Clear { credential, target, id, reason } => {
                let query = [("credential", credential.to_string())];
                let all: Vec<HolderView> = self.client.query(&["holders"], &query).await?;
                let (target, what) = find_holder(&all, &credential, &target, &id)?;
                let clear = Clear { credential, target, what, reason };
                self.post::<Done>(&["holders", "clear"], Some(&clear)).await
            }
        }
    }

    async fn host(&mut self, command: cli::Host) -> Result<Exit, ClientError> {
        match command {
            cli::Host::List => self.show::<Vec<HostSummary>>(&["hosts"]).await,
            cli::Host::Show { host } => self.show::<HostDetail>(&["hosts", &host]).await,
            cli::Host::EnrollToken { name, labels, life, out } => {
                let labels = labels.into_iter().map(|label| (label.key, label.value)).collect();
                let request = EnrolToken { name, labels, life_ms: life.map(|span| span.ms) };
                let issued: EnrolTokenIssued =
                    self.client.post(&["hosts", "enroll-token"], Some(&request)).await?;
                self.hand_over(&issued, out.as_deref())
            }
            cli::Host::Label { host, changes } => {
                let detail: HostDetail = self.client.get(&["hosts", &host]).await?;
                let mut labels = detail.summary.labels;
                for change in changes {
                    match change {
                        LabelChange::Set(label) => drop(labels.insert(label.key, label.value)),
                        LabelChange::Remove(key) => drop(labels.remove(&key)),
                    }
                }
                let value: Done = self.client.put(&["hosts", &host, "labels"], &Labels { labels }).await?;
                self.print(&value)
            }
            cli::Host::Excuse { host, version: cli::NameAtVersion { name, version }, reason } => {
                let excuse = Excuse { credential: name, version, reason };
                self.post::<Done>(&["hosts", &host, "excuse"], Some(&excuse)).await
            }
            cli::Host::Retire { host, reason } => {
                self.post::<Done>(&["hosts", &host, "retire"], Some(&Reason { reason })).await
            }
        }
    }

    /// The bundle goes to stdout or into a file of its own; what else there is to say goes to stderr.
    fn hand_over(&mut self, issued: &EnrolTokenIssued, out: Option<&Path>) -> Result<Exit, ClientError> {
        let Some(path) = out else { return self.print(issued) };
        let failed = |why: &dyn std::fmt::Display| {
            ClientError::Local(format!(
                "failed to write the bundle {}: {why}; name another file and run this again; the token that was made expires by itself",
                path.display()
            ))
        };
        let json = issued.bundle.to_json().map_err(|error| failed(&error))?;
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| failed(&error))?;
        file.write_all(&json).and_then(|()| file.sync_all()).map_err(|error| failed(&error))?;
        let next = format!("eso-vm-applier enroll --bundle {}", path.display());
        say(self.streams, &format!("carry {} to the host and run there, as root: {next}", path.display()));
        Ok(Exit::Done)
    }

    async fn source(&mut self, command: cli::Source) -> Result<Exit, ClientError> {
        let cli::Source::Refresh(cli::Refresh { name, all: _ }) = command;
        match name {
            Some(name) => self.post::<Done>(&["sources", name.as_str(), "refresh"], None::<&()>).await,
            None => self.post::<Done>(&["sources", "refresh"], None::<&()>).await,
        }
    }

    async fn audit(&mut self, command: cli::Audit) -> Result<Exit, ClientError> {
        let mut whole = match command.after {
            Some(after) => self.audit_after(&command, after).await?,
            None => self.audit_newest(&command).await?,
        };
        if self.format == Format::Table {
            let hosts: Vec<HostSummary> = self.client.get(&["hosts"]).await?;
            name_hosts(&mut whole, &hosts);
        }
        self.print(&whole)
    }

    /// Asks for page after page until there are enough rows or no more.
    async fn audit_after(&mut self, command: &cli::Audit, after: u64) -> Result<AuditPage, ClientError> {
        let mut whole = AuditPage { entries: Vec::new(), next: Some(after), previous: None };
        while let Some(after) = whole.next {
            let Some(rows) = rows_left(command, whole.entries.len()) else { break };
            let page = self.audit_page(command, &[("after", after), ("limit", rows)]).await?;
            whole.entries.extend(page.entries);
            whole.next = page.next.filter(|next| *next > after);
        }
        Ok(whole)
    }

    /// Asks for page before page, from the end.
    async fn audit_newest(&mut self, command: &cli::Audit) -> Result<AuditPage, ClientError> {
        let since = command.since.map_or(0, |since| UnixMillis::now().0.saturating_sub(since.ms));
        let mut whole = AuditPage { entries: Vec::new(), next: None, previous: None };
        while let Some(rows) = rows_left(command, whole.entries.len()) {
            let before = whole.previous.map(|before| ("before", before));
            let query: Vec<_> = before.into_iter().chain([("last", rows)]).collect();
            let mut page = self.audit_page(command, &query).await?;
            let asked = page.entries.len();
            page.entries.retain(|row| row.at.0 >= since);
            let is_older = page.entries.len() < asked;
            page.entries.append(&mut whole.entries);
            whole = page;
            if is_older || whole.previous.is_none() {
                break;
            }
        }
        Ok(whole)
    }

    async fn audit_page(
        &mut self,
        command: &cli::Audit,
        query: &[(&'static str, u64)],
    ) -> Result<AuditPage, ClientError> {
        let mut query: Vec<_> = query.iter().map(|(key, number)| (*key, number.to_string())).collect();
        query.extend(command.subject.iter().map(|subject| ("subject", subject.clone())));
        self.client.query(&["audit"], &query).await
    }

    async fn operator(&mut self, command: cli::Operator) -> Result<Exit, ClientError> {
        match command {
            cli::Operator::List => self.show::<Vec<OperatorView>>(&["operators"]).await,
            cli::Operator::Add { name, role, csr, life } => {
                let proof = match csr {
                    None => OperatorProof::Token,
                    Some(path) => {
                        let csr = std::fs::read_to_string(&path).map_err(|why| {
                            ClientError::Local(format!("failed to read {}: {why}", path.display()))
                        })?;
                        OperatorProof::Certificate { csr }
                    }
                };
                let role = match role {
                    cli::Role::Scraper => protocol::api::Role::Scraper,
                    cli::Role::Viewer => protocol::api::Role::Viewer,
                    cli::Role::Operator => protocol::api::Role::Operator,
                    cli::Role::Admin => protocol::api::Role::Admin,
                };
                let new = NewOperator { name, role, proof, life_ms: life.map(|span| span.ms) };
                self.post::<OperatorIssued>(&["operators"], Some(&new)).await
            }
            cli::Operator::Revoke { id } => {
                let value: Done = self.client.delete(&["operators", &id], None::<&()>).await?;
                self.print(&value)
            }
        }
    }
}

/// How many rows the next page should have; none when there are enough.
fn rows_left(command: &cli::Audit, have: usize) -> Option<u64> {
    let left = u64::from(command.limit).saturating_sub(have as u64);
    (left > 0).then(|| left.min(AUDIT_PAGE_ROWS))
}

/// Which of the listed holders is meant; the host by name, id, or the beginning of its id.
fn find_holder(
    all: &[HolderView],
    credential: &CredentialName,
    target: &str,
    id: &str,
) -> Result<(TargetId, ClearWhat), ClientError> {
    let is_target = |row: &&HolderView| {
        row.name == target
            || (target.len() >= 8 && row.target.as_str().starts_with(target))
            || row.target.as_str() == target
    };
    let found = all.iter().filter(is_target).find(|row| row.id == id).ok_or_else(|| {
        ClientError::from(protocol::api::Problem::new(
            404,
            "not_found",
            format!("{credential} has no holder or gap {id:?} on {target}"),
            "see `esoctl holders list` for what there is",
        ))
    })?;
    let wrong = |error: &dyn std::fmt::Display| ClientError::Usage(error.to_string());
    let what = match found.kind.as_str() {
        "holder" => ClearWhat::Holder(id.parse().map_err(|error| wrong(&error))?),
        _ => ClearWhat::Gap(id.parse().map_err(|error| wrong(&error))?),
    };
    Ok((found.target.clone(), what))
}

fn read_secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, ClientError> {
    let mut content = Zeroizing::new(Vec::new());
    let read = if path.as_os_str() == "-" {
        std::io::stdin().read_to_end(&mut content)
    } else {
        std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut content))
    };
    read.map_err(|why| ClientError::Local(format!("failed to read {}: {why}", path.display())))?;
    Ok(content)
}
