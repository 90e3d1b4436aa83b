//! Generators, sources and store targets: everything that is asked for, or told, a value.
