//! Paths as a policy may write them, and which of them lies beneath which.

use std::path::Path;

/// The most bytes of a path: what the kernel takes.
pub const PATH_BYTES_MAX: usize = 4095;

/// Whether `path` is `directory` itself or lies beneath it, whole names compared: `/etc/app-old` does not lie
/// beneath `/etc/app`.
pub fn is_beneath(path: &Path, directory: &Path) -> bool {
    path.starts_with(directory)
}

/// Accepts absolute paths without `.`, `..`, empty names and control characters.
pub fn check(text: &str) -> Result<(), String> {
    if !text.starts_with('/') {
        return Err(format!("{text:?} is not absolute: begin it with /"));
    }
    if text.len() > PATH_BYTES_MAX {
        return Err(format!("is longer than {PATH_BYTES_MAX} bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err(format!("{text:?} has a control character"));
    }
    for name in text.split('/').skip(1) {
        match name {
            "" => return Err(format!("{text:?} has an empty name: write each / once and none at the end")),
            "." | ".." => {
                return Err(format!("{text:?} goes through {name:?}: write the path that is meant"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Accepts the name of one file of a set.
pub fn check_file_name(text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > 255 || text.contains('/') || text.chars().any(char::is_control) {
        return Err(format!("{text:?} is not a file name: 1 to 255 bytes without / and control characters"));
    }
    if text == "." || text.starts_with("..") {
        return Err(format!(
            "{text:?} is kept for the set itself: choose a name that does not begin with .."
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_at_a_separator() {
        assert!(is_beneath(Path::new("/etc/app/key"), Path::new("/etc/app")));
        assert!(is_beneath(Path::new("/etc/app"), Path::new("/etc/app")));
        assert!(!is_beneath(Path::new("/etc/app-old/key"), Path::new("/etc/app")));
        assert!(!is_beneath(Path::new("/etc"), Path::new("/etc/app")));
    }

    #[test]
    fn paths_that_are_not_what_they_say_are_refused() {
        for bad in ["etc/x", "/", "/etc//x", "/etc/x/", "/etc/../x", "/etc/./x", "/etc/\u{7}x", ""] {
            assert!(check(bad).is_err(), "{bad:?} was accepted");
        }
        for bad in ["", ".", "..", "..data", "a/b", "a\nb"] {
            assert!(check_file_name(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(check("/etc/orders/db.env").is_ok());
        assert!(check_file_name(".pgpass").is_ok());
    }
}
