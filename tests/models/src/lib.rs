//! Explicit-state models of the safety rules, with planted mistakes.
