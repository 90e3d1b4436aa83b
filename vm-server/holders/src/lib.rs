//! Who may still have a version: processes, cgroups, gaps and how they heal, the sweep.
