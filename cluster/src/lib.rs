//! Membership daemon: links, configuration, control socket, supervisor, wiring.
