//! What an agent takes over from another packet filter.

use ringfence_dataplane::ApplyError;
use tracing::error;

use crate::run::explained;

/// Clears what other packet filters hold, once policies are in force in the one in use.
///
/// Not before: until then it is the others that keep packets out. In between both are in force, and a packet passes only if
/// both let it.
pub struct Succession {
    /// Nothing when it is done.
    clear: Option<Clear>,
    /// Policies are in force in the packet filter in use.
    in_force: bool,
    /// What was said last, in order not to repeat it.
    trouble: Option<String>,
}

type Clear = Box<dyn FnMut() -> Result<(), ApplyError>>;

impl Succession {
    /// `clear` is called when the first program is in force; when it fails, again after later writes and looks at the packet
    /// filter, until it succeeds.
    pub fn new(clear: impl FnMut() -> Result<(), ApplyError> + 'static) -> Succession {
        Succession { clear: Some(Box::new(clear)), in_force: false, trouble: None }
    }

    /// There is nothing to clear.
    pub fn none() -> Succession {
        Succession { clear: None, in_force: false, trouble: None }
    }

    /// A program is in force.
    pub(crate) fn in_force(&mut self) {
        self.in_force = true;
        self.retry();
    }

    /// Clears what could not be cleared before, if a program is in force.
    pub(crate) fn retry(&mut self) {
        let Some(clear) = self.clear.as_mut().filter(|_| self.in_force) else { return };
        match clear() {
            Ok(()) => self.clear = None,
            Err(error) => {
                let text = explained(&error);
                if self.trouble.as_ref() != Some(&text) {
                    error!(
                        "what ringfence may have left in another packet filter is in force too and could not be removed; it is \
                         tried again: {text}"
                    );
                    self.trouble = Some(text);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    #[test]
    fn nothing_is_cleared_before_a_program_is_in_force_and_nothing_twice() {
        let calls = Rc::new(Cell::new(0));
        let counted = calls.clone();
        let mut succession = Succession::new(move || {
            counted.set(counted.get() + 1);
            if counted.get() < 3 { Err(ApplyError::Contended { attempts: 1 }) } else { Ok(()) }
        });
        succession.retry();
        assert_eq!(calls.get(), 0);
        succession.in_force();
        assert_eq!(calls.get(), 1);
        succession.retry();
        assert_eq!(calls.get(), 2);
        for _ in 0..3 {
            succession.in_force();
            succession.retry();
            assert_eq!(calls.get(), 3);
        }
    }
}
