//! What the plugins before this one have made: read for the pod's addresses, passed on as it is.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::failure::Failure;

/// The parts of a result that are read. They are the same in all versions that have chains.
#[derive(Deserialize)]
struct Made {
    #[serde(default)]
    interfaces: Option<Vec<Interface>>,
    #[serde(default)]
    ips: Option<Vec<Address>>,
}

#[derive(Deserialize)]
struct Interface {
    /// The network namespace; empty or absent on the host.
    #[serde(default)]
    sandbox: Option<String>,
}

#[derive(Deserialize)]
struct Address {
    /// With the length of its network's prefix.
    address: String,
    /// Index of the interface that has it. Some plugins leave it out, some write a negative number for that.
    #[serde(default)]
    interface: Option<i64>,
}

/// The addresses of the pod, each once: those on interfaces in a sandbox, and those that are on no interface in particular.
pub(crate) fn addresses(result: &RawValue) -> Result<Vec<IpAddr>, Failure> {
    let invalid = |what: String| Failure::configuration(format!("prevResult: {what}"));
    let made: Made = serde_json::from_str(result.get()).map_err(|error| invalid(error.to_string()))?;
    let interfaces = made.interfaces.unwrap_or_default();
    let mut addresses = Vec::new();
    for Address { address, interface } in made.ips.unwrap_or_default() {
        if let Some(index) = interface.and_then(|index| usize::try_from(index).ok()) {
            let Some(interface) = interfaces.get(index) else {
                return Err(invalid(format!("{address} is on interface {index}, which is not listed")));
            };
            if interface.sandbox.as_deref().unwrap_or_default().is_empty() {
                continue;
            }
        }
        let network: IpNet =
            address.parse().map_err(|_| invalid(format!("{address:?} is not an address with a prefix")))?;
        let address = network.addr().to_canonical();
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
            return Err(invalid(format!("{address} cannot be a pod's address")));
        }
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(invalid("it has no address of the pod".to_owned()));
    }
    Ok(addresses)
}

/// The result as this plugin's own: unchanged, in the version that was asked for.
pub(crate) fn passed_on(result: &RawValue, cni_version: &str) -> Result<String, Failure> {
    let invalid = |error: serde_json::Error| Failure::configuration(format!("prevResult: {error}"));
    let mut fields: BTreeMap<String, &RawValue> = serde_json::from_str(result.get()).map_err(invalid)?;
    let version = to_raw_value(cni_version).map_err(invalid)?;
    // Before 1.0.0 results did not need to say their version.
    if fields.get("cniVersion").is_some_and(|said| said.get() == version.get()) {
        return Ok(result.get().to_owned());
    }
    fields.insert("cniVersion".to_owned(), &version);
    serde_json::to_string(&fields).map_err(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> &RawValue {
        serde_json::from_str(text).unwrap()
    }

    #[track_caller]
    fn check(result: &str, expected: &[&str]) {
        let expected: Vec<IpAddr> = expected.iter().map(|address| address.parse().unwrap()).collect();
        assert_eq!(addresses(raw(result)).unwrap(), expected);
    }

    #[test]
    fn only_the_pods_addresses() {
        // As bridge writes it.
        check(
            r#"{"interfaces":[{"name":"cni0"},{"name":"veth0","sandbox":""},{"name":"eth0","sandbox":"/run/netns/a"}],
                "ips":[{"version":"4","interface":2,"address":"10.244.0.7/24","gateway":"10.244.0.1"},
                       {"interface":2,"address":"fd00::7/64"},{"interface":0,"address":"10.244.0.1/24"},
                       {"interface":2,"address":"10.244.0.7/24"}]}"#,
            &["10.244.0.7", "fd00::7"],
        );
        // As Calico writes it: host interfaces only, and addresses without an index.
        check(r#"{"interfaces":[{"name":"cali0"}],"ips":[{"address":"192.168.1.5/32"}]}"#, &["192.168.1.5"]);
        check(
            r#"{"ips":[{"interface":-1,"address":"192.168.1.5/32"},{"interface":null,"address":"::ffff:10.0.0.1/128"}]}"#,
            &["192.168.1.5", "10.0.0.1"],
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for result in [
            "{}",
            "[]",
            r#"{"ips":null}"#,
            r#"{"ips":[{"address":"10.0.0.1"}]}"#,
            r#"{"ips":[{"address":"10.0.0.1/33"}]}"#,
            r#"{"ips":[{"address":"web"}]}"#,
            r#"{"ips":[{"address":7}]}"#,
            r#"{"ips":[{"address":"0.0.0.0/0"}]}"#,
            r#"{"ips":[{"address":"127.0.0.1/8"}]}"#,
            r#"{"ips":[{"address":"::ffff:127.0.0.1/128"}]}"#,
            r#"{"ips":[{"address":"ff02::1/128"}]}"#,
            r#"{"ips":[{"address":"10.0.0.1/24","interface":0}]}"#,
            r#"{"interfaces":[{"name":"a"}],"ips":[{"address":"10.0.0.1/24","interface":0}]}"#,
        ] {
            let said = addresses(raw(result)).unwrap_err().to_string();
            assert!(said.starts_with("invalid network configuration: prevResult: "), "{result}: {said}");
        }
    }

    #[test]
    fn passed_on_as_it_is() {
        let result = r#"{ "x":1e400, "cniVersion":"1.0.0","ips" : [], "n":123456789012345678901234567890}"#;
        assert_eq!(passed_on(raw(result), "1.0.0").unwrap(), result);
        assert_eq!(
            passed_on(raw(r#"{"ips":[ 1 ],"n":1e400}"#), "0.3.1").unwrap(),
            r#"{"cniVersion":"0.3.1","ips":[ 1 ],"n":1e400}"#
        );
        assert!(passed_on(raw("[]"), "0.3.1").is_err());
    }
}
