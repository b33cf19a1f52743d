//! Protocols and ports, of policies and of containers.

use ringfence_model::{ContainerPort, PortMatch, PortRange, Protocol};

use crate::diagnostic::shown;
use crate::dom::Value;
use crate::names::is_port_name;
use crate::read::{At, Fields, Report, integer, mapping, string};
use crate::scalar::ScalarType;

/// Reads `protocol`; TCP when it is absent, nothing when it is wrong.
pub(crate) fn protocol(report: &mut Report, fields: Fields<'_>) -> Option<Protocol> {
    let Some(at) = fields.get("protocol") else {
        return Some(Protocol::Tcp);
    };
    let text = string(report, &at, "protocol")?;
    let found = Protocol::ALL.into_iter().find(|protocol| protocol.as_str() == text);
    if found.is_none() {
        let meant = Protocol::ALL.into_iter().find(|protocol| protocol.as_str().eq_ignore_ascii_case(text));
        let hint = match meant {
            Some(protocol) => format!("write {protocol}"),
            None => "the protocols are TCP, UDP and SCTP".to_owned(),
        };
        report.error_hint(&at, format!("\"{}\" is not a protocol", shown(text)), hint);
    }
    found
}

/// Reads a port number, 1 to 65535.
pub(crate) fn port_number(report: &mut Report, at: &At<'_>, what: &str) -> Option<u16> {
    let number = integer(report, at, what)?;
    match u16::try_from(number) {
        Ok(port) if port > 0 => Some(port),
        _ => {
            report.error(at, format!("{number} is not a port: ports are 1 to 65535"));
            None
        }
    }
}

/// Reads one entry of a policy rule's `ports`.
pub(crate) fn port_match(report: &mut Report, at: &At<'_>) -> Option<PortMatch> {
    let fields = mapping(report, at)?;
    fields.only(report, &["protocol", "port", "endPort"], |name| match name {
        "from" | "to" => Some("it stands beside `ports`, in the same rule: check the indentation"),
        "name" | "containerPort" | "targetPort" | "number" => Some("write `port`, with a number or a port name"),
        "ports" => Some("write one `port` per entry"),
        "endport" => Some("write `endPort`"),
        _ => None,
    });
    let protocol = protocol(report, fields);
    let first = fields.get("port").map(|at| port_or_name(report, &at));
    let last = fields.get("endPort").map(|at| (at, port_number(report, &at, "endPort")));
    match (first, last) {
        (None, None) => Some(PortMatch::Number(protocol?, PortRange::ALL)),
        (None, Some((at, _))) => {
            report.error(&at, "endPort needs `port`, the first port of the range");
            None
        }
        (Some(NumberOrName::Number(port)), None) => Some(PortMatch::Number(protocol?, PortRange::single(port))),
        (Some(NumberOrName::Number(first)), Some((at, last))) => {
            let last = last?;
            if last < first {
                report.error(&at, format!("endPort {last} is less than port {first}"));
                return None;
            }
            Some(PortMatch::Number(protocol?, PortRange { first, last }))
        }
        (Some(NumberOrName::Name(name)), None) => Some(PortMatch::Named(protocol?, name.into())),
        (Some(NumberOrName::Name(_)), Some((at, _))) => {
            report.error(&at, "endPort needs a `port` that is a number");
            None
        }
        (Some(NumberOrName::Wrong), _) => None,
    }
}

/// What a field holds that takes a port or the name of one.
pub(crate) enum NumberOrName<'a> {
    Number(u16),
    Name(&'a str),
    /// Reported already.
    Wrong,
}

/// Reads a field that takes a port or the name of one.
pub(crate) fn port_or_name<'a>(report: &mut Report, at: &At<'a>) -> NumberOrName<'a> {
    let Value::Scalar(text, ScalarType::String) = &at.node.value else {
        return port_number(report, at, "port").map_or(NumberOrName::Wrong, NumberOrName::Number);
    };
    if is_port_name(text) {
        return NumberOrName::Name(text);
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
        report.error_hint(
            at,
            format!("\"{}\" in quotes is a port name, and a name needs a letter", shown(text)),
            format!("remove the quotes: port: {}", shown(text)),
        );
    } else if text
        .split_once('-')
        .is_some_and(|(first, last)| first.trim().parse::<u16>().is_ok() && last.trim().parse::<u16>().is_ok())
    {
        report.error_hint(at, format!("\"{}\" is not a port", shown(text)), "write a range as `port` and `endPort`");
    } else {
        report.error_hint(
            at,
            format!("\"{}\" is not a port name", shown(text)),
            "at most 15 of a-z, 0-9 and single `-` between them, with at least one letter",
        );
    }
    NumberOrName::Wrong
}

/// Reads one entry of a list of named ports: of a container (`containerPort`) or an external host (`port`). A wrong name is reported and dropped, the port is kept.
pub(crate) fn named_port(report: &mut Report, fields: Fields<'_>, number: &'static str) -> Option<ContainerPort> {
    let name = fields.get("name").and_then(|at| {
        let name = string(report, &at, "port name").filter(|name| !name.is_empty())?;
        if !is_port_name(name) {
            report.error(&at, format!("\"{}\" is not a port name", shown(name)));
            return None;
        }
        Some(name.into())
    });
    let protocol = protocol(report, fields);
    let Some(at) = fields.get(number) else {
        report.error(&fields.at.missing(number), format!("`{number}` is missing"));
        return None;
    };
    let port = port_number(report, &at, number)?;
    Some(ContainerPort { name, protocol: protocol?, port })
}
