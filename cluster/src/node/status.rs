//! What: a node as people and programs see it.
//! Owns: the value behind the control socket's `status`.
//! Invariants: made from memory alone.
//! Does not: format.
//! Called by: the control socket.

use deadbolt_cluster_core::membership::MembershipStatus;
use deadbolt_dlm_core::service::ServiceStatus;
use deadbolt_qdisk_core::register::RegisterStatus;

/// See the module's head.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// Who is in.
    pub membership: MembershipStatus,
    /// The view register.
    pub register: RegisterStatus,
    /// Why the register does not go on, if it does not.
    pub blocked: Option<String>,
    /// The lock service.
    pub locks: ServiceStatus,
}
