//! A program as lines of text, one line for each entry: for dumps, and for tests whose programs are data.
//!
//! ```text
//! node-address 192.0.2.1
//! guard 10.0.0.0/24
//! known 10.0.0.1
//! judges-others
//! believes endpoints
//! local 10.0.0.1
//! other-node 192.0.2.2
//! endpoint 10.0.0.1 TCP/80
//! unmasqueraded 10.128.0.0/9
//! ingress pod 10.0.0.1 default/web-0
//! ingress port 10.0.0.1 TCP/80 1f
//! ingress port 10.0.0.1 UDP/1000-2000 anyone
//! ingress port 10.0.0.1 rest 1f
//! ingress gate 1f v4,pods default/[app=web]; 10.1.0.0/16
//! ingress block 1f 10.1.0.0-10.1.255.255
//! ingress class 2 1f,20
//! ingress peer 10.9.0.1 2
//! ```
//!
//! Names of gates and classes are hexadecimal. What follows a gate's flags is its origin. A pod comes before its ports, a
//! gate before its blocks, a guarded range before what is known in it. Other nodes are believed about `endpoints`, which
//! comes before these, about `local-pods` or about `everything`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use ringfence_compile::{
    Admission, Believed, ClassId, Gate, GateId, Guard, PortTable, Program, ProtocolRange, Reach, Side, Subject,
};
use ringfence_model::{AddressRange, Direction, PortRange, Protocol};

/// A line that says nothing.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: not an entry of a program: {text:?}")]
pub struct NotationError {
    /// Counted from 1.
    pub line: usize,
    /// The line.
    pub text: String,
}

/// Writes a program down. The generation and the node's name are left out.
pub fn print(program: &Program) -> String {
    let mut lines = String::new();
    for address in &program.node_addresses {
        line(&mut lines, format_args!("node-address {address}"));
    }
    for range in program.guard.ranges() {
        line(&mut lines, format_args!("guard {range}"));
    }
    for address in program.guard.known() {
        line(&mut lines, format_args!("known {address}"));
    }
    print_reach(&mut lines, &program.reach);
    for direction in Direction::ALL {
        let side = program.side(direction);
        for (address, subject) in &side.subjects {
            line(&mut lines, format_args!("{direction} pod {address} {}", subject.pod));
            for (range, admission) in subject.ports.segments() {
                line(&mut lines, format_args!("{direction} port {address} {range} {}", shown(*admission)));
            }
            if let Some(admission) = subject.ports.rest() {
                line(&mut lines, format_args!("{direction} port {address} rest {}", shown(admission)));
            }
        }
        for (id, gate) in &side.gates {
            let flags = [("v4", gate.v4), ("v6", gate.v6), ("pods", gate.selects_pods)];
            let flags: Vec<&str> = flags.into_iter().filter_map(|(name, set)| set.then_some(name)).collect();
            line(&mut lines, format_args!("{direction} gate {:x} {} {}", id.0, flags.join(","), gate.origin));
            for range in &gate.blocks {
                line(&mut lines, format_args!("{direction} block {:x} {range}", id.0));
            }
        }
        for (id, gates) in &side.classes {
            let gates: Vec<String> = gates.iter().map(|gate| format!("{:x}", gate.0)).collect();
            line(&mut lines, format_args!("{direction} class {:x} {}", id.0, gates.join(",")));
        }
        for (address, id) in &side.peers {
            line(&mut lines, format_args!("{direction} peer {address} {:x}", id.0));
        }
    }
    lines
}

fn print_reach(lines: &mut String, reach: &Reach) {
    if reach.judges_others {
        line(lines, format_args!("judges-others"));
    }
    match &reach.believed {
        Believed::Nothing => {}
        Believed::Endpoints(_) => line(lines, format_args!("believes endpoints")),
        Believed::LocalPods => line(lines, format_args!("believes local-pods")),
        Believed::Everything => line(lines, format_args!("believes everything")),
    }
    for address in &reach.local {
        line(lines, format_args!("local {address}"));
    }
    for address in &reach.nodes {
        line(lines, format_args!("other-node {address}"));
    }
    if let Believed::Endpoints(endpoints) = &reach.believed {
        for (address, protocol, port) in endpoints {
            line(lines, format_args!("endpoint {address} {}/{port}", protocol.as_str()));
        }
    }
    for network in reach.unmasqueraded.iter() {
        line(lines, format_args!("unmasqueraded {network}"));
    }
}

fn shown(admission: Admission) -> String {
    match admission {
        Admission::Anyone => "anyone".to_owned(),
        Admission::Gate(id) => format!("{:x}", id.0),
    }
}

fn line(lines: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(lines, "{}", text.to_string().trim_end());
}

/// Reads a program; blank lines are skipped. Its generation is 0.
///
/// # Errors
/// The first line that is no entry.
pub fn parse(node: &str, text: &str) -> Result<Program, NotationError> {
    let mut program = Program::empty(Arc::from(node));
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if !line.is_empty() && entry(&mut program, line).is_none() {
            return Err(NotationError { line: index + 1, text: line.to_owned() });
        }
    }
    Ok(program)
}

fn entry(program: &mut Program, line: &str) -> Option<()> {
    let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
    let side = match first {
        "judges-others" | "believes" | "local" | "other-node" | "endpoint" | "unmasqueraded" => {
            return reach(&mut program.reach, first, rest);
        }
        "node-address" => {
            program.node_addresses.insert(rest.parse().ok()?);
            return Some(());
        }
        "guard" => {
            let ranges = [program.guard.ranges(), &[rest.parse().ok()?]].concat();
            program.guard = Guard::new(&ranges, program.guard.known().iter().copied());
            return Some(());
        }
        "known" => {
            let address: IpAddr = rest.parse().ok()?;
            let known = program.guard.known().iter().copied().chain([address]);
            program.guard = Guard::new(program.guard.ranges(), known);
            return program.guard.known().contains(&address).then_some(());
        }
        "ingress" => &mut program.ingress,
        "egress" => &mut program.egress,
        _ => return None,
    };
    let (what, rest) = rest.split_once(' ')?;
    let (key, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    match what {
        "pod" => {
            let subject = Subject { pod: Arc::from(rest), ports: Arc::new(PortTable::default()) };
            side.subjects.insert(key.parse().ok()?, subject);
        }
        "port" => port(side, key.parse().ok()?, rest)?,
        "gate" => {
            let (flags, origin) = rest.split_once(' ').unwrap_or((rest, ""));
            let mut gate =
                Gate { v4: false, v6: false, selects_pods: false, blocks: Vec::new(), origin: Arc::from(origin) };
            for flag in flags.split(',') {
                match flag {
                    "v4" => gate.v4 = true,
                    "v6" => gate.v6 = true,
                    "pods" => gate.selects_pods = true,
                    _ => return None,
                }
            }
            side.gates.insert(GateId(name(key)?), Arc::new(gate));
        }
        "block" => {
            let (first, last) = range::<IpAddr>(rest)?;
            let gate = Arc::make_mut(side.gates.get_mut(&GateId(name(key)?))?);
            gate.blocks.push(AddressRange { first, last });
        }
        "class" => {
            let gates: Option<BTreeSet<GateId>> = rest.split(',').map(|gate| name(gate).map(GateId)).collect();
            side.classes.insert(ClassId(name(key)?), Arc::new(gates?));
        }
        "peer" => {
            side.peers.insert(key.parse().ok()?, ClassId(name(rest)?));
        }
        _ => return None,
    }
    Some(())
}

fn reach(reach: &mut Reach, what: &str, rest: &str) -> Option<()> {
    match what {
        "judges-others" if rest.is_empty() => reach.judges_others = true,
        "believes" => {
            reach.believed = match rest {
                "endpoints" => Believed::Endpoints(Default::default()),
                "local-pods" => Believed::LocalPods,
                "everything" => Believed::Everything,
                _ => return None,
            };
        }
        "local" => {
            reach.local.insert(rest.parse().ok()?);
        }
        "other-node" => {
            reach.nodes.insert(rest.parse().ok()?);
        }
        "endpoint" => {
            let (address, port) = rest.split_once(' ')?;
            let ProtocolRange { protocol, ports } = protocol_range(port)?;
            let Believed::Endpoints(endpoints) = &mut reach.believed else { return None };
            if ports.first != ports.last {
                return None;
            }
            endpoints.insert((address.parse().ok()?, protocol, ports.first));
        }
        "unmasqueraded" => {
            let network = rest.parse().ok()?;
            reach.unmasqueraded = reach.unmasqueraded.iter().copied().chain([network]).collect();
        }
        _ => return None,
    }
    Some(())
}

fn port(side: &mut Side, address: IpAddr, rest: &str) -> Option<()> {
    let (ports, admission) = rest.split_once(' ')?;
    let admission = match admission {
        "anyone" => Admission::Anyone,
        gate => Admission::Gate(GateId(name(gate)?)),
    };
    let subject = side.subjects.get_mut(&address)?;
    let (mut segments, mut everywhere) = (subject.ports.segments().to_vec(), subject.ports.rest());
    match ports {
        "rest" => everywhere = Some(admission),
        ports => segments.push((protocol_range(ports)?, admission)),
    }
    subject.ports = Arc::new(PortTable::of(segments, everywhere));
    Some(())
}

fn name(text: &str) -> Option<u128> {
    u128::from_str_radix(text, 16).ok()
}

fn protocol_range(text: &str) -> Option<ProtocolRange> {
    let (protocol, ports) = text.split_once('/')?;
    let protocol = Protocol::ALL.into_iter().find(|known| known.as_str() == protocol)?;
    let ports = match ports {
        "*" => PortRange::ALL,
        ports => {
            let (first, last) = range::<u16>(ports)?;
            PortRange { first, last }
        }
    };
    Some(ProtocolRange { protocol, ports })
}

/// `first-last`, or one value that is both.
fn range<T: FromStr + Copy + PartialOrd>(text: &str) -> Option<(T, T)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_reads_the_same() {
        let text = "node-address 192.0.2.1\n\
            guard 10.0.0.0/24\n\
            guard fd00::/64\n\
            known 10.0.0.1\n\
            judges-others\n\
            believes endpoints\n\
            local 10.0.0.1\n\
            other-node 192.0.2.2\n\
            other-node 2001:db8::2\n\
            endpoint 10.0.0.1 TCP/80\n\
            endpoint fd00::1 SCTP/65535\n\
            unmasqueraded 10.128.0.0/9\n\
            unmasqueraded fd00:8::/32\n\
            ingress pod 10.0.0.1 default/web-0\n\
            ingress port 10.0.0.1 TCP/80 1f\n\
            ingress port 10.0.0.1 UDP/1000-2000 anyone\n\
            ingress port 10.0.0.1 rest 20\n\
            ingress gate 1f v4,pods default/[app=web]; 10.1.0.0/16\n\
            ingress block 1f 10.1.0.0-10.1.255.255\n\
            ingress gate 20 v4,v6\n\
            ingress class 2 1f,20\n\
            ingress peer 10.9.0.1 2\n";
        assert_eq!(print(&parse("node", text).unwrap()), text);
    }

    #[test]
    fn all_beliefs_are_printed() {
        for belief in ["believes local-pods\n", "believes everything\n", "believes endpoints\n", ""] {
            assert_eq!(print(&parse("node", belief).unwrap()), belief);
        }
    }

    #[test]
    fn nonsense_is_refused_with_its_line() {
        for line in [
            "guard 10.0.0.1-10.0.0.2",
            "known 10.0.0.1",
            "judges-others 10.0.0.1",
            "believes",
            "believes nothing",
            "local web",
            "other-node",
            "endpoint 10.0.0.1 TCP/80",
            "unmasqueraded 10.0.0.1",
            "ingress",
            "ingress pod",
            "ingress port 10.0.0.1 TCP/80 1",
            "egress gate 1 v5",
            "egress block 1 10.0.0.1",
        ] {
            let error = parse("node", &format!("\n{line}")).unwrap_err();
            assert_eq!((error.line, error.text.as_str()), (2, line));
        }
    }
}
