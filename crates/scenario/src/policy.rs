use std::collections::{BTreeMap, BTreeSet};

use arbitrary::{Result, Unstructured};
use ipnet::IpNet;
use ringfence_model::{
    Action, IpBlock, Isolation, NamespaceScope, Operator, Peer, Peers, Policy, PolicyId, PortMatch, PortRange, Ports,
    Requirement, Rule, Selector, Tier,
};

use crate::cluster::{KEYS, NAMESPACES, PORT_NAMES, PORTS, VALUES, protocol, text};

/// Blocks that nest, touch, repeat and cover everything.
const BLOCKS: [&str; 16] = [
    "0.0.0.0/0",
    "0.0.0.0/1",
    "128.0.0.0/1",
    "10.0.0.0/8",
    "10.0.0.0/16",
    "10.0.0.0/24",
    "10.0.0.0/25",
    "10.0.0.128/25",
    "10.0.0.0/31",
    "10.0.0.1/32",
    "255.255.255.255/32",
    "172.17.0.0/16",
    "172.17.1.0/24",
    "::/0",
    "fd00::/64",
    "fd00::1/128",
];

pub(crate) fn policy(u: &mut Unstructured<'_>) -> Result<Policy> {
    let id = PolicyId {
        tier: Tier::Namespace,
        namespace: text(u, &NAMESPACES)?,
        name: format!("policy-{}", u.int_in_range(0..=15)?).into(),
    };
    Ok(Policy {
        id,
        priority: 0,
        namespaces: NamespaceScope::Own,
        pods: if u.ratio(1, 3)? { Selector::default() } else { selector(u)? },
        isolates: Isolation { ingress: u.ratio(2, 3)?, egress: u.ratio(2, 3)? },
        ingress: rules(u)?,
        egress: rules(u)?,
    })
}

fn rules(u: &mut Unstructured<'_>) -> Result<Vec<Rule>> {
    let mut rules = Vec::new();
    for _ in 0..u.int_in_range(0..=3)? {
        let rule = Rule { action: Action::Accept, peers: peers(u)?, ports: ports(u)? };
        if u.ratio(1, 16)? {
            rules.push(rule.clone());
        }
        rules.push(rule);
    }
    Ok(rules)
}

fn peers(u: &mut Unstructured<'_>) -> Result<Peers> {
    if u.ratio(1, 6)? {
        return Ok(Peers::Any);
    }
    let mut peers = Vec::new();
    for _ in 0..u.int_in_range(1..=3)? {
        peers.push(match u.int_in_range(0..=4)? {
            0 => Peer::Pods { namespaces: NamespaceScope::Own, pods: selector(u)? },
            1 => Peer::Pods { namespaces: NamespaceScope::Matching(selector(u)?), pods: Selector::default() },
            2 => Peer::Pods { namespaces: NamespaceScope::Matching(selector(u)?), pods: selector(u)? },
            _ => Peer::Block(block(u)?),
        });
    }
    Ok(Peers::OneOf(peers))
}

fn block(u: &mut Unstructured<'_>) -> Result<IpBlock> {
    let parse = |text: &str| text.parse::<IpNet>().map_err(|_| arbitrary::Error::IncorrectFormat);
    let cidr = parse(u.choose(&BLOCKS)?)?;
    let mut except = Vec::new();
    for _ in 0..u.int_in_range(0..=3)? {
        let inner = parse(u.choose(&BLOCKS)?)?;
        if cidr.contains(&inner) && cidr != inner {
            except.push(inner);
        }
    }
    Ok(IpBlock { cidr, except })
}

fn ports(u: &mut Unstructured<'_>) -> Result<Ports> {
    if u.ratio(1, 3)? {
        return Ok(Ports::Any);
    }
    let mut ports = Vec::new();
    for _ in 0..u.int_in_range(1..=3)? {
        let protocol = protocol(u)?;
        ports.push(match u.int_in_range(0..=5)? {
            0 => PortMatch::Number(protocol, PortRange::ALL),
            1 | 2 => PortMatch::Named(protocol, text(u, &PORT_NAMES)?),
            3 => {
                let (a, b) = (*u.choose(&PORTS)?, *u.choose(&PORTS)?);
                PortMatch::Number(protocol, PortRange { first: a.min(b), last: a.max(b) })
            }
            _ => PortMatch::Number(protocol, PortRange::single(*u.choose(&PORTS)?)),
        });
    }
    Ok(Ports::OneOf(ports))
}

fn selector(u: &mut Unstructured<'_>) -> Result<Selector> {
    let mut match_labels = BTreeMap::new();
    if u.ratio(1, 3)? {
        match_labels.insert(text(u, &KEYS)?, text(u, &VALUES)?);
    }
    let mut match_expressions = Vec::new();
    for _ in 0..u.choose(&[0, 0, 1, 1, 2]).copied()? {
        let mut values = BTreeSet::from([text(u, &VALUES)?]);
        if u.arbitrary()? {
            values.insert(text(u, &VALUES)?);
        }
        let operator = match u.int_in_range(0..=3)? {
            0 => Operator::In(values),
            1 => Operator::NotIn(values),
            2 => Operator::Exists,
            _ => Operator::DoesNotExist,
        };
        match_expressions.push(Requirement { key: text(u, &KEYS)?, operator });
    }
    Ok(Selector { match_labels, match_expressions })
}
