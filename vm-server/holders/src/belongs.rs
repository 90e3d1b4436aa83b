//! What a cgroup's path says of who a process belongs to.

/// Who a process belongs to by its cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Belongs {
    /// A unit of the system's manager; `root` is the unit's own cgroup, with everything below.
    Unit { name: String, root: String },
    /// A unit of a user's manager. Never one that policy names: users name their own units.
    UserUnit { name: String, root: String },
    /// Another cgroup: a container, for example.
    Group { root: String },
    /// PID 1 and what it has just forked.
    Init,
    /// Nothing that tells it apart: the root cgroup, a bare slice, or one outside our view.
    Nothing,
}

impl Belongs {
    /// By the path on cgroup v2. Slices only sort; the first unit below them is the life that counts, whatever a
    /// process with delegated rights makes below it.
    pub(crate) fn of(cgroup: &str) -> Self {
        let mut root = String::new();
        let mut user: Option<(String, String)> = None;
        for part in cgroup.split('/').filter(|part| !part.is_empty()) {
            if part == ".." || part == "." {
                return Self::Nothing;
            }
            root.push('/');
            root.push_str(part);
            if is_kind(part, &["slice"]) {
                continue;
            }
            if root == "/init.scope" {
                return Self::Init;
            }
            if !is_kind(part, &["service", "scope", "socket", "mount", "swap"]) {
                return match user {
                    Some((name, root)) => Self::UserUnit { name, root },
                    None => Self::Group { root: cgroup.to_owned() },
                };
            }
            if let Some((manager, _)) = user {
                return Self::UserUnit { name: format!("{manager}/{part}"), root };
            }
            if !(part.starts_with("user@") && is_kind(part, &["service"])) {
                return Self::Unit { name: part.to_owned(), root };
            }
            user = Some((part.to_owned(), root.clone()));
        }
        user.map_or(Self::Nothing, |(name, root)| Self::UserUnit { name, root })
    }

    /// The cgroup whose processes belong together.
    pub(crate) fn root(&self) -> Option<&str> {
        match self {
            Self::Unit { root, .. } | Self::UserUnit { root, .. } | Self::Group { root } => Some(root),
            Self::Init | Self::Nothing => None,
        }
    }
}

/// Whether `cgroup` is `root` or below it.
pub(crate) fn is_within(cgroup: &str, root: &str) -> bool {
    cgroup.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether a name has one of these endings.
fn is_kind(part: &str, kinds: &[&str]) -> bool {
    part.rsplit_once('.').is_some_and(|(_, ending)| kinds.contains(&ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outermost_unit_counts_whatever_is_made_below_it() {
        let unit = |name: &str, root: &str| Belongs::Unit { name: name.into(), root: root.into() };
        assert_eq!(
            Belongs::of("/system.slice/orders.service/x/payments.service"),
            unit("orders.service", "/system.slice/orders.service")
        );
        assert_eq!(
            Belongs::of("/machine.slice/machine-a.scope/payload/system.slice/orders.service"),
            unit("machine-a.scope", "/machine.slice/machine-a.scope")
        );
        assert_eq!(
            Belongs::of("/user.slice/user-0.slice/session-3.scope"),
            unit("session-3.scope", "/user.slice/user-0.slice/session-3.scope")
        );
        assert_eq!(
            Belongs::of("/system.slice/system-a.slice/a@1.service"),
            unit("a@1.service", "/system.slice/system-a.slice/a@1.service")
        );
    }

    #[test]
    fn a_users_unit_is_never_one_of_the_systems() {
        let within = "/user.slice/user-7.slice/user@7.service/app.slice/orders.service";
        assert_eq!(
            Belongs::of(within),
            Belongs::UserUnit { name: "user@7.service/orders.service".into(), root: within.into() }
        );
        let manager = "/user.slice/user-7.slice/user@7.service";
        assert_eq!(
            Belongs::of(manager),
            Belongs::UserUnit { name: "user@7.service".into(), root: manager.into() }
        );
    }

    #[test]
    fn the_rest_is_a_group_or_nothing() {
        assert_eq!(Belongs::of("/docker/0a1b"), Belongs::Group { root: "/docker/0a1b".into() });
        assert_eq!(Belongs::of("/init.scope"), Belongs::Init);
        for nothing in ["/", "", "/system.slice", "/../other.service"] {
            assert_eq!(Belongs::of(nothing), Belongs::Nothing, "{nothing}");
        }
    }

    #[test]
    fn within_is_by_whole_parts() {
        assert!(is_within("/a/b", "/a"));
        assert!(is_within("/a", "/a"));
        assert!(!is_within("/ab", "/a"));
    }
}
