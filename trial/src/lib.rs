//! What: what a trial cluster on one machine is made of: a directory with a device, networks, nodes, processes that end with their maker.
//! Owns: image file and loop device, network namespaces or the relay, tied children.
//! Invariants: whatever ends the maker, nothing of its trial is left: the kernel or the next run takes it away.
//! Does not: know what runs on the cluster.
//! Called by: the demo, the benchmarks.

pub mod children;
pub mod network;
pub mod node;
pub mod place;
pub mod relay;

pub use children::Tied;
pub use network::Network;
pub use node::Node;
pub use place::Place;
