//! Random clusters, policies and flows, made from bytes.
//!
//! The same generator serves property tests (random bytes), fuzz targets (bytes a fuzzer mutates) and, by seed, anything
//! else. Everything is drawn from small pools on purpose: a policy that matches nothing and a flow that meets no policy
//! test nothing. Addresses collide, blocks overlap, keys are absent, rules repeat.

mod cluster;
mod flow;
mod policy;
mod service;

pub use cluster::{cluster, object, pod_ranges};
pub use flow::flows;
pub use service::{service_object, with_services};

use arbitrary::{Result, Unstructured};
use ringfence_model::{Object, ObjectKey};

/// One step in the life of a cluster.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "lists of events are short")]
pub enum Event {
    /// An object appears or changes.
    Apply(Object),
    /// An object goes.
    Delete(ObjectKey),
}

/// Up to `most` events: new objects, changed ones and deletions, of the same small world as [`cluster`].
///
/// # Errors
/// When the bytes do not suffice, which `arbitrary` treats as the end of input.
pub fn events(u: &mut Unstructured<'_>, most: usize) -> Result<Vec<Event>> {
    events_of(u, most, object)
}

/// As [`events`], and with Services, their endpoints and tunnels of nodes.
///
/// # Errors
/// When the bytes do not suffice, which `arbitrary` treats as the end of input.
pub fn events_with_services(u: &mut Unstructured<'_>, most: usize) -> Result<Vec<Event>> {
    events_of(u, most, |u| if u.ratio(1, 3)? { service_object(u) } else { object(u) })
}

fn events_of<'a>(
    u: &mut Unstructured<'a>,
    most: usize,
    object: impl Fn(&mut Unstructured<'a>) -> Result<Object>,
) -> Result<Vec<Event>> {
    let mut known: Vec<ObjectKey> = Vec::new();
    let mut events = Vec::new();
    for _ in 0..u.int_in_range(1..=most)? {
        if !known.is_empty() && u.ratio(1, 4)? {
            let position = u.choose_index(known.len())?;
            events.push(Event::Delete(known[position].clone()));
        } else {
            let object = object(u)?;
            known.push(object.key());
            events.push(Event::Apply(object));
        }
    }
    Ok(events)
}

/// `length` bytes that follow from a seed, for callers without a source of bytes of their own.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    // SplitMix64: small, and good enough to choose from pools.
    let mut state = seed;
    let mut words = std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    });
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&words.next().unwrap_or_default().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
