//! From the state of a cluster to what one node must enforce.
//!
//! ```text
//! Cluster::apply/delete/reset ──► Touched ──► NodeCompiler::compile ──► Program ──► backends, eval
//!    pods grouped into pod classes               peers grouped into peer classes
//! ```
//!
//! No structure here grows with pods × pods or with pods × policies: a pod is one member of one pod class, a pod class
//! knows once per node which gates it passes, and a peer address in a program is one entry that points at a peer class.

pub mod acl;
mod cluster;
mod compiler;
mod digest;
mod gate;
mod guard;
mod home;
mod judged;
mod matcher;
mod node;
mod pod_class;
mod port_table;
mod ports;
mod program;
mod reach;
mod regions;
mod rules;
mod selection;
mod served;
mod side;
mod terms;

pub use acl::Acl;
pub use cluster::{Cluster, Touched, UnsupportedTier};
pub use compiler::Compiler;
pub use gate::{Admission, Gate, GateId};
pub use guard::{Guard, UnknownPods};
pub use node::NodeCompiler;
pub use port_table::PortTable;
pub use ports::{PortSet, ProtocolRange};
pub use program::{Because, ClassId, Judgement, Program, Side, SideVerdict, Subject};
pub use reach::{Believed, Reach};
