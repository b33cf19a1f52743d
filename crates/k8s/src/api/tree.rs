//! JSON to the tree that the readers read, without the fields that nobody asks for.

use std::rc::Rc;

use serde::de::{Deserialize as _, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::Kind;
use crate::cluster::{ADDRESSES_ANNOTATION, ENFORCEMENT_ANNOTATION};
use crate::dom::{Entry, Node, Position, Value};
use crate::pod::MIRROR_ANNOTATION;
use crate::scalar::ScalarType;
use crate::service::SERVICE_LABEL;

/// How deep collections may nest. What is deeper becomes a value that every reader refuses.
const MAX_DEPTH: usize = 64;

/// There are no lines to speak of.
const NOWHERE: Position = Position { line: 0, column: 0 };

/// What is taken over. A value of another type than its shape expects is taken over whole, for the readers to complain about.
pub(super) enum Shape {
    /// All of it.
    Whole,
    /// These fields of a mapping.
    Fields(&'static [(&'static str, Shape)]),
    /// This of each item of a list.
    Each(&'static Shape),
}

use Shape::{Each, Fields, Whole};

const METADATA: Shape = Fields(&[
    ("name", Whole),
    ("namespace", Whole),
    ("uid", Whole),
    ("resourceVersion", Whole),
    ("creationTimestamp", Whole),
    ("labels", Whole),
    // A static pod's other uid; what a node's agent has written.
    (
        "annotations",
        Fields(&[(MIRROR_ANNOTATION, Whole), (ADDRESSES_ANNOTATION, Whole), (ENFORCEMENT_ANNOTATION, Whole)]),
    ),
]);

const CONTAINERS: Shape = Each(&Fields(&[
    ("restartPolicy", Whole),
    ("ports", Each(&Fields(&[("name", Whole), ("protocol", Whole), ("containerPort", Whole)]))),
]));

/// Which object it is.
pub(super) static IDENTITY: Shape = Fields(&[("metadata", NAMES)]);

const NAMES: Shape = Fields(&[("name", Whole), ("namespace", Whole), ("uid", Whole), ("resourceVersion", Whole)]);

static NAMESPACE: Shape = Fields(&[("metadata", METADATA)]);

static NODE: Shape = Fields(&[
    ("metadata", METADATA),
    ("spec", Fields(&[("podCIDR", Whole), ("podCIDRs", Whole)])),
    ("status", Fields(&[("addresses", Whole)])),
]);

static POD: Shape = Fields(&[
    ("metadata", METADATA),
    (
        "spec",
        Fields(&[
            ("nodeName", Whole),
            ("hostNetwork", Whole),
            ("containers", CONTAINERS),
            ("initContainers", CONTAINERS),
        ]),
    ),
    ("status", Fields(&[("phase", Whole), ("podIP", Whole), ("podIPs", Whole)])),
]);

/// The whole spec: a field of it that is not known may take away what another one grants.
static POLICY: Shape = Fields(&[("metadata", METADATA), ("spec", Whole)]);

/// What tells whether it can be called from outside.
static SERVICE: Shape = Fields(&[
    ("metadata", NAMES),
    ("spec", Fields(&[("type", Whole), ("clusterIP", Whole), ("externalIPs", Whole)])),
    ("status", Fields(&[("loadBalancer", Fields(&[("ingress", Each(&Fields(&[("ip", Whole), ("ipMode", Whole)])))]))])),
]);

/// Without the nodes, zones and pods of endpoints, and without its annotation, which is another one at each change.
static SLICE: Shape = Fields(&[
    (
        "metadata",
        Fields(&[
            ("name", Whole),
            ("namespace", Whole),
            ("resourceVersion", Whole),
            ("labels", Fields(&[(SERVICE_LABEL, Whole)])),
        ]),
    ),
    ("addressType", Whole),
    (
        "endpoints",
        Each(&Fields(&[
            ("addresses", Whole),
            ("conditions", Fields(&[("ready", Whole), ("serving", Whole), ("terminating", Whole)])),
        ])),
    ),
    ("ports", Each(&Fields(&[("protocol", Whole), ("port", Whole)]))),
]);

/// What the readers of a kind ask for.
pub(super) fn shape(kind: Kind) -> &'static Shape {
    match kind {
        Kind::Namespace => &NAMESPACE,
        Kind::Node => &NODE,
        Kind::Pod => &POD,
        Kind::NetworkPolicy => &POLICY,
        Kind::Service => &SERVICE,
        Kind::EndpointSlice => &SLICE,
    }
}

/// Reads one JSON value.
pub(super) fn read(json: &str, shape: &'static Shape) -> serde_json::Result<Node> {
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let node = item(shape).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(node)
}

/// Reads one JSON value as a part of another one.
pub(super) fn item<'de>(shape: &'static Shape) -> impl DeserializeSeed<'de, Value = Node> {
    Item(Projection { shape, depth: 0 })
}

struct Item(Projection);

impl<'de> DeserializeSeed<'de> for Item {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        self.0.deserialize(deserializer).map(node)
    }
}

fn node(value: Value) -> Node {
    Node { position: NOWHERE, value }
}

fn scalar(text: &str, kind: ScalarType) -> Value {
    Value::Scalar(text.into(), kind)
}

#[derive(Clone, Copy)]
struct Projection {
    shape: &'static Shape,
    depth: usize,
}

impl Projection {
    fn inner(self, shape: &'static Shape) -> Projection {
        Projection { shape, depth: self.depth + 1 }
    }
}

impl<'de> DeserializeSeed<'de> for Projection {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.depth > MAX_DEPTH {
            // Passed over without recursion.
            IgnoredAny::deserialize(deserializer)?;
            return Ok(scalar("", ScalarType::Tagged));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Projection {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(scalar("null", ScalarType::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(scalar(if value { "true" } else { "false" }, ScalarType::Boolean(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(scalar(&value.to_string(), ScalarType::Integer(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        let kind = i64::try_from(value).map_or(ScalarType::Float, ScalarType::Integer);
        Ok(scalar(&value.to_string(), kind))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(scalar(&value.to_string(), ScalarType::Float))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(scalar(value, ScalarType::String))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let shape = match self.shape {
            Each(shape) => shape,
            Whole | Fields(_) => &Whole,
        };
        let mut items = Vec::new();
        while let Some(value) = list.next_element_seed(self.inner(shape))? {
            items.push(node(value));
        }
        Ok(Value::Sequence(Rc::new(items)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries: Vec<Entry> = Vec::new();
        while let Some(key) = map.next_key_seed(Projection { shape: &Whole, depth: 0 })? {
            let key = node(key);
            let shape = match self.shape {
                Fields(known) => known.iter().find(|(name, _)| *name == key.text()).map(|(_, shape)| shape),
                Whole | Each(_) => Some(&Whole),
            };
            match shape {
                Some(shape) => {
                    let value = node(map.next_value_seed(self.inner(shape))?);
                    entries.push(Entry { key, value });
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Value::Mapping(Rc::new(entries)))
    }
}
