use sha2::{Digest as _, Sha256};

/// A name that follows from content: the first 128 bits of a SHA-256.
///
/// It has to resist collisions on purpose: whoever may write policies could otherwise give their own pods the rights of
/// another class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Digest(pub(crate) u128);

/// Collects content for a [`Digest`]. Texts and lists carry their length, so different content gives different input.
pub(crate) struct Digester(Sha256);

impl Digester {
    /// `domain` keeps digests of different kinds of things apart.
    pub(crate) fn new(domain: &str) -> Digester {
        let mut digester = Digester(Sha256::new());
        digester.text(domain);
        digester
    }

    pub(crate) fn number(&mut self, number: usize) {
        self.0.update((number as u64).to_be_bytes());
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.number(text.len());
        self.0.update(text.as_bytes());
    }

    pub(crate) fn digest(&mut self, digest: Digest) {
        self.0.update(digest.0.to_be_bytes());
    }

    pub(crate) fn finish(self) -> Digest {
        let mut first = [0; 16];
        first.copy_from_slice(&self.0.finalize()[..16]);
        Digest(u128::from_be_bytes(first))
    }
}
