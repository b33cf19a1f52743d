//! What is wrong with single policies, for their owners to hear: the way from the loop to whoever tells them.

use std::collections::BTreeMap;

use ringfence_k8s::{Diagnostic, Severity};
use ringfence_model::{PolicyId, Tier};
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

/// Something wrong with one policy. Its pods are isolated as it says and it allows nothing, or less than it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyTrouble {
    /// The policy.
    pub policy: PolicyId,
    /// What kind of trouble.
    pub kind: TroubleKind,
    /// What is wrong and what to do, on one line.
    pub message: String,
}

/// What kind of trouble a policy has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TroubleKind {
    /// What it says makes no sense.
    Invalid,
    /// It makes sense, but this node cannot enforce it as it stands.
    NotProgrammed,
}

impl TroubleKind {
    /// The value of the metrics' label `reason`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            TroubleKind::Invalid => "invalid",
            TroubleKind::NotProgrammed => "not_programmed",
        }
    }
}

/// The troubles there are, and which of them have been told.
#[derive(Debug, Default)]
pub(crate) struct Troubles {
    listener: Option<Sender<PolicyTrouble>>,
    now: BTreeMap<(TroubleKind, PolicyId), String>,
    told: BTreeMap<(TroubleKind, PolicyId), String>,
    /// Some could not be told yet.
    owes: bool,
}

impl Troubles {
    pub(crate) fn new(listener: Option<Sender<PolicyTrouble>>) -> Troubles {
        Troubles { listener, ..Troubles::default() }
    }

    /// All troubles of one kind, and what is wrong.
    pub(crate) fn set(&mut self, kind: TroubleKind, policies: BTreeMap<PolicyId, String>) {
        self.now.retain(|(other, _), _| *other != kind);
        self.now.extend(policies.into_iter().map(|(policy, message)| ((kind, policy), message)));
        // What is over and comes again is told again.
        self.told.retain(|trouble, _| self.now.contains_key(trouble));
        self.owes = true;
    }

    pub(crate) fn count(&self, kind: TroubleKind) -> usize {
        self.now.keys().filter(|(other, _)| *other == kind).count()
    }

    /// What is wrong, a line for each.
    pub(crate) fn lines(&self) -> impl Iterator<Item = String> {
        self.now.iter().map(|((_, policy), message)| format!("{policy}: {message}"))
    }

    /// Tells the listener what is new or different. Never waits: what a full channel does not take is told the next time.
    pub(crate) fn tell(&mut self) {
        let Some(listener) = self.listener.as_ref().filter(|_| self.owes) else { return };
        for (trouble, message) in &self.now {
            if self.told.get(trouble) == Some(message) {
                continue;
            }
            let (kind, policy) = trouble.clone();
            match listener.try_send(PolicyTrouble { policy, kind, message: message.clone() }) {
                Ok(()) => {
                    self.told.insert(trouble.clone(), message.clone());
                }
                Err(TrySendError::Full(_)) => return,
                Err(TrySendError::Closed(_)) => {
                    self.listener = None;
                    return;
                }
            }
        }
        self.owes = false;
    }
}

/// The policies that have errors, each with all of them.
pub(crate) fn invalid_policies(diagnostics: &[Diagnostic]) -> BTreeMap<PolicyId, String> {
    let mut policies: BTreeMap<PolicyId, String> = BTreeMap::new();
    for diagnostic in diagnostics.iter().filter(|diagnostic| diagnostic.severity >= Severity::Error) {
        let Some(policy) = diagnostic.object.as_deref().and_then(named_policy) else { continue };
        let message = policies.entry(policy).or_default();
        if !message.is_empty() {
            message.push_str("; ");
        }
        if !diagnostic.field.is_empty() {
            message.push_str(&diagnostic.field);
            message.push_str(": ");
        }
        message.push_str(&diagnostic.message);
        if let Some(hint) = &diagnostic.hint {
            message.push_str(" (");
            message.push_str(hint);
            message.push(')');
        }
    }
    policies
}

/// The policy that a diagnostic is about, if it says so and the policy has a name.
fn named_policy(object: &str) -> Option<PolicyId> {
    let (namespace, name) = object.strip_prefix("NetworkPolicy ")?.split_once('/')?;
    // "(no name)" is none, and what was cut short is another.
    let is_name = |text: &str| text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c));
    (is_name(namespace) && is_name(name)).then(|| PolicyId {
        tier: Tier::Namespace,
        namespace: namespace.into(),
        name: name.into(),
    })
}

#[cfg(test)]
mod tests {
    use ringfence_k8s::{Source, parse};
    use tokio::sync::mpsc::channel;

    use super::*;

    fn id(name: &str) -> PolicyId {
        PolicyId { tier: Tier::Namespace, namespace: "shop".into(), name: name.into() }
    }

    fn troubles<const N: usize>(troubles: [(&str, &str); N]) -> BTreeMap<PolicyId, String> {
        troubles.into_iter().map(|(name, message)| (id(name), message.to_owned())).collect()
    }

    #[test]
    fn told_once_and_again_when_it_is_different_or_comes_back() {
        let (sender, mut told) = channel(8);
        let mut all = Troubles::new(Some(sender));
        let mut step = |now: BTreeMap<PolicyId, String>| {
            all.set(TroubleKind::Invalid, now);
            all.tell();
            let mut heard = Vec::new();
            while let Ok(trouble) = told.try_recv() {
                heard.push(format!("{}: {}", trouble.policy.name, trouble.message));
            }
            heard
        };
        assert_eq!(step(troubles([("a", "x"), ("b", "y")])), ["a: x", "b: y"]);
        assert!(step(troubles([("a", "x"), ("b", "y")])).is_empty());
        assert_eq!(step(troubles([("a", "z")])), ["a: z"]);
        assert_eq!(step(troubles([("a", "z"), ("b", "y")])), ["b: y"]);
    }

    #[test]
    fn kinds_do_not_mix() {
        let mut all = Troubles::new(None);
        all.set(TroubleKind::Invalid, troubles([("a", "x"), ("b", "y")]));
        all.set(TroubleKind::NotProgrammed, troubles([("a", "x")]));
        assert_eq!((all.count(TroubleKind::Invalid), all.count(TroubleKind::NotProgrammed)), (2, 1));
        all.set(TroubleKind::Invalid, BTreeMap::new());
        assert_eq!(all.lines().collect::<Vec<_>>(), ["shop/a: x"]);
    }

    #[test]
    fn a_full_channel_holds_nobody_up_and_loses_nothing() {
        let (sender, mut told) = channel(1);
        let mut all = Troubles::new(Some(sender));
        all.set(TroubleKind::Invalid, troubles([("a", "x"), ("b", "y"), ("c", "z")]));
        let mut heard = Vec::new();
        for _ in 0..5 {
            all.tell();
            heard.extend(told.try_recv().ok().map(|trouble| trouble.policy.name));
        }
        assert_eq!(heard, ["a".into(), "b".into(), "c".into()]);
        drop(told);
        all.set(TroubleKind::Invalid, troubles([("a", "other")]));
        all.tell();
        assert!(all.listener.is_none());
    }

    #[test]
    fn errors_name_their_policy_however_long_its_name_is() {
        let long = "a".repeat(253);
        let policy = |name: &str, spec: &str| {
            format!(
                "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: shop, name: {name}}}\n\
                 spec: {{{spec}}}\n---\n"
            )
        };
        let text = policy("good", "podSelector: {}")
            + &policy(&long, "podSelector: {}, ingress: [{form: []}, {ports: [{protocol: tcp}]}]")
            + &policy("Nobody", "podSelector: {}, ingress: [{form: []}]");
        let diagnostics = parse(&[Source { name: "test", text: text.as_bytes() }]).diagnostics;
        let found = invalid_policies(&diagnostics);
        assert_eq!(found.keys().map(|id| &*id.name).collect::<Vec<_>>(), [long.as_str()], "{diagnostics:?}");
        let message = &found[&id(&long)];
        assert!(message.contains("spec.ingress[0].form: ") && message.contains("; spec.ingress[1]"), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
}
