//! How long single changes take on a node of a large cluster, for every packet filter.
//!
//! The filters take turns, so each finds the caches as the others have left them. That is how changes come in a cluster,
//! too; one after the other, nftables writes a remote pod several times faster.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use clap::Args;
use ringfence_lab::NetNs;
use ringfence_model::{Namespace, NamespaceScope, Object, Peer};

use crate::cluster::{OTHER_NODE, OUR_NODE, address, labels, our_node, own, pod, policy, rule, selector};
use crate::filter::{Enforced, Filter, Sample};
use crate::report::{Report, chain};

/// How often everything is written.
const LOADS: usize = 5;
/// Values of the label that policies select by. Each of a namespace's pods has one of them.
const APPS: u16 = 5;
/// Values of a label of namespaces that peers are described by.
const TEAMS: u16 = 10;
const FIRST_PORT: u16 = 8_000;
/// The first port that a changed policy has.
const FIRST_NEW_PORT: u16 = 20_000;

/// The cluster in which changes are measured.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// Namespaces with pods on the node.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    scale_namespaces: u16,
    /// Policies of each namespace, with one rule for each direction.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(5..=1_000))]
    scale_policies: u16,
    /// Pods on the node.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    scale_local_pods: u16,
    /// Pods on other nodes.
    #[arg(long, default_value_t = 1_800, value_parser = clap::value_parser!(u16).range(1..=50_000))]
    scale_remote_pods: u16,
    /// How often each kind of change is made.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    scale_changes: u16,
}

/// What is timed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Operation {
    FirstLoad,
    Reload,
    Change(Change),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    RemotePod,
    RemoteLabel,
    LocalPod,
    LocalLabel,
    Port,
    Policy,
    Namespace,
}

impl Change {
    /// The order in which they are made: the last one makes the node larger.
    const ALL: [Change; 7] = [
        Change::RemotePod,
        Change::RemoteLabel,
        Change::LocalPod,
        Change::LocalLabel,
        Change::Port,
        Change::Policy,
        Change::Namespace,
    ];
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Operation::FirstLoad => "full load, nothing there",
            Operation::Reload => "full load, next to the old one",
            Operation::Change(Change::RemotePod) => "remote pod added",
            Operation::Change(Change::RemoteLabel) => "label of a remote pod changed",
            Operation::Change(Change::LocalPod) => "local pod added",
            Operation::Change(Change::LocalLabel) => "label of a local pod changed",
            Operation::Change(Change::Port) => "port of a policy changed",
            Operation::Change(Change::Policy) => "policy added",
            Operation::Change(Change::Namespace) => "first local pod of a namespace added",
        })
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policies = u32::from(self.scale_namespaces) * u32::from(self.scale_policies);
        let Scale { scale_namespaces, scale_local_pods, scale_remote_pods, .. } = self;
        write!(
            f,
            "{policies} policies in {scale_namespaces} namespaces, {} pods, {scale_local_pods} of them local",
            scale_local_pods + scale_remote_pods
        )
    }
}

impl Scale {
    fn objects(self) -> Vec<Object> {
        let mut objects = vec![our_node()];
        objects.extend((0..self.scale_namespaces).flat_map(|number| self.namespace_with_policies(number)));
        objects.extend((0..self.scale_local_pods).map(|number| self.local_pod(number, 0)));
        objects.extend((0..self.scale_remote_pods).map(|number| self.remote_pod(number, 0)));
        objects
    }

    /// The `round`th change of its kind, from 0. It changes something for pods of the node, or for their peers.
    fn change(self, change: Change, round: u16) -> Vec<Object> {
        let again = |pods| (round % pods, 1 + round / pods);
        // A local pod, and policies that select it after its label has changed.
        let (local, changes) = again(self.scale_local_pods);
        let (namespace, app) = (local % self.scale_namespaces, self.app_of(local, changes));
        vec![match change {
            Change::RemotePod => self.remote_pod(self.scale_remote_pods + round, 0),
            Change::RemoteLabel => {
                let (remote, changes) = again(self.scale_remote_pods);
                self.remote_pod(remote, changes)
            }
            Change::LocalPod => self.local_pod(self.scale_local_pods + round, 0),
            Change::LocalLabel => self.local_pod(local, changes),
            Change::Port => policy_of(namespace, app, app, FIRST_NEW_PORT + round),
            Change::Policy => policy_of(namespace, self.scale_policies + round, app, FIRST_PORT + self.scale_policies),
            Change::Namespace => {
                let number = self.scale_namespaces + round;
                let mut objects = self.namespace_with_policies(number);
                let address = address(Ipv4Addr::new(10, 192, 0, 1), round.into());
                objects.push(Object::Pod(pod(
                    &name_of(number),
                    &format!("first-{round}"),
                    address,
                    &app_name(0),
                    OUR_NODE,
                )));
                return objects;
            }
        }]
    }

    fn namespace_with_policies(self, number: u16) -> Vec<Object> {
        let labels = labels("team", &team_of(number));
        let mut objects = vec![Object::Namespace(Namespace { name: name_of(number).into(), labels })];
        let policies = 0..self.scale_policies;
        objects.extend(policies.map(|policy| policy_of(number, policy, policy, FIRST_PORT + policy)));
        objects
    }

    /// The pod as it is after its label has changed so many times.
    fn remote_pod(self, number: u16, changes: u16) -> Object {
        let address = address(Ipv4Addr::new(10, 0, 0, 1), number.into());
        self.pod(number, changes, &format!("remote-{number}"), address, OTHER_NODE)
    }

    /// The pod as it is after its label has changed so many times.
    fn local_pod(self, number: u16, changes: u16) -> Object {
        let address = address(Ipv4Addr::new(10, 128, 0, 1), number.into());
        self.pod(number, changes, &format!("local-{number}"), address, OUR_NODE)
    }

    fn pod(self, number: u16, changes: u16, name: &str, address: IpAddr, node: &str) -> Object {
        let (namespace, app) = (name_of(number % self.scale_namespaces), app_name(self.app_of(number, changes)));
        Object::Pod(pod(&namespace, name, address, &app, node))
    }

    fn app_of(self, pod: u16, changes: u16) -> u16 {
        (pod / self.scale_namespaces + changes) % APPS
    }
}

/// Pods of an app may be called by the next app of their namespace, and may call another one of a team's namespaces.
fn policy_of(namespace: u16, number: u16, app: u16, port: u16) -> Object {
    let pods = |offset| selector("app", &app_name(app + offset));
    let team = NamespaceScope::Matching(selector("team", &team_of(namespace + 1)));
    let ingress = vec![rule(own(pods(1)), port)];
    let egress = vec![rule(Peer::Pods { namespaces: team, pods: pods(2) }, port)];
    Object::Policy(policy(&name_of(namespace), &format!("policy-{number:04}"), pods(0), ingress, egress))
}

fn name_of(namespace: u16) -> String {
    format!("namespace-{namespace:04}")
}

fn team_of(namespace: u16) -> String {
    format!("team-{}", namespace % TEAMS)
}

fn app_name(number: u16) -> String {
    format!("app-{}", number % APPS)
}

pub(crate) fn measure(scale: Scale, filters: &[Filter], report: &mut Report) -> Result<(), Box<dyn Error>> {
    let mut samples: BTreeMap<(Operation, Filter), Vec<Sample>> = BTreeMap::new();
    let mut note = |operation, filter, sample| samples.entry((operation, filter)).or_default().push(sample);
    let mut nodes: Vec<(Filter, NetNs, Box<dyn Enforced>)> = Vec::new();
    for round in 1..=LOADS {
        report.progress(&format!("{scale}: load {round} of {LOADS}"));
        nodes.clear();
        for filter in filters {
            let namespace = NetNs::create()?;
            let (mut enforced, first) = match namespace.within(|| filter.enforce(scale.objects()))? {
                Ok(loaded) => loaded,
                // Without root's rights iptables-nft cannot send many rules at once.
                Err(error) => {
                    if round == 1 {
                        report.skipped(&format!("{scale}: {filter}: {}", chain(&*error)));
                    }
                    continue;
                }
            };
            note(Operation::FirstLoad, *filter, first);
            note(Operation::Reload, *filter, namespace.within(|| enforced.reload())??);
            nodes.push((*filter, namespace, enforced));
        }
    }
    for change in Change::ALL {
        report.progress(&format!("{scale}: {}, {} times", Operation::Change(change), scale.scale_changes));
        for round in 0..scale.scale_changes {
            for (filter, namespace, enforced) in &mut nodes {
                let sample = namespace.within(|| enforced.change(scale.change(change, round)))??;
                note(Operation::Change(change), *filter, sample);
            }
        }
    }
    report.scale_of(&scale.to_string());
    for ((operation, filter), series) in &samples {
        let baseline = samples.get(&(*operation, Filter::Nftables)).map_or(&[][..], Vec::as_slice);
        report.scale(&operation.to_string(), &filter.to_string(), series, baseline);
    }
    Ok(())
}
