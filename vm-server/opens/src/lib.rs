//! Who opened or read which version of a file: fanotify groups and marks.
