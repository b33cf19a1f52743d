//! Keeps a backend at the newest program, with as little writing as is safe.

use crate::backend::{Applied, ApplyError, Backend, Demand, Drift};

/// Applies programs to a backend and remembers the last one that is certainly in force.
pub struct Reconciler<B: Backend> {
    backend: B,
    /// What the kernel enforces; nothing when that is not certain.
    in_force: Option<B::Demand>,
}

/// What [`Reconciler::apply`] did.
#[derive(Debug)]
pub enum Outcome {
    /// The program in force demands the same already.
    Unchanged,
    /// Wrote the difference.
    Updated(Applied),
    /// Wrote everything.
    Replaced {
        /// The transaction.
        applied: Applied,
        /// Why the difference could not be written, if that was tried: something else changes our tables.
        after: Option<ApplyError>,
    },
}

impl<B: Backend> Reconciler<B> {
    /// A reconciler that assumes nothing about what the kernel enforces.
    pub fn new(backend: B) -> Reconciler<B> {
        Reconciler { backend, in_force: None }
    }

    /// Makes the kernel enforce `program`.
    ///
    /// When the difference cannot be written, everything is written anew, once.
    ///
    /// # Errors
    /// Writing everything failed. What was in force stays in force (or, with [`ApplyError::state_unknown`], `program`
    /// is), and the next call writes everything again.
    pub fn apply(&mut self, program: &B::Demand) -> Result<Outcome, ApplyError> {
        let Some(from) = &mut self.in_force else {
            return self.replace(program, None);
        };
        let Some(diff) = from.difference(program) else {
            // Another program that demands the same: keep the newer one, so that the next difference shares more.
            *from = program.clone();
            return Ok(Outcome::Unchanged);
        };
        match self.backend.update(from, program, &diff) {
            Ok(applied) => {
                *from = program.clone();
                Ok(Outcome::Updated(applied))
            }
            Err(error) => {
                self.in_force = None;
                self.replace(program, Some(error))
            }
        }
    }

    fn replace(&mut self, program: &B::Demand, after: Option<ApplyError>) -> Result<Outcome, ApplyError> {
        let applied = self.backend.replace(program)?;
        self.in_force = Some(program.clone());
        Ok(Outcome::Replaced { applied, after })
    }

    /// Looks whether the kernel still has what is in force, and mends it. What others had done, if it had to; nothing, when
    /// nothing is in force.
    ///
    /// # Errors
    /// The backend's. What is in force is not certain then.
    pub fn repair(&mut self) -> Result<Option<Drift>, ApplyError> {
        self.mend(Backend::repair)
    }

    /// The same for [`Backend::heed`], when the backend's alarm rings.
    ///
    /// # Errors
    /// The backend's. What is in force is not certain then.
    pub fn heed(&mut self) -> Result<Option<Drift>, ApplyError> {
        self.mend(Backend::heed)
    }

    fn mend(
        &mut self,
        how: impl FnOnce(&mut B, &B::Demand) -> Result<Option<Drift>, ApplyError>,
    ) -> Result<Option<Drift>, ApplyError> {
        let Some(program) = self.in_force.take() else { return Ok(None) };
        let drift = how(&mut self.backend, &program)?;
        self.in_force = Some(program);
        Ok(drift)
    }

    /// Removes everything of ours from the kernel.
    ///
    /// # Errors
    /// The backend's. What is in force is not certain then.
    pub fn cleanup(&mut self) -> Result<(), ApplyError> {
        self.in_force = None;
        self.backend.cleanup()
    }

    /// Forgets what is in force: the next [`Reconciler::apply`] writes everything.
    pub fn forget(&mut self) {
        self.in_force = None;
    }

    /// The program that is certainly in force.
    pub fn in_force(&self) -> Option<&B::Demand> {
        self.in_force.as_ref()
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The backend, to do things behind the reconciler's back.
    pub fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }
}
