//! Reads a Deadbolt device and reports every finding.
