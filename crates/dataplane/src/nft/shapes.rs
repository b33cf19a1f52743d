//! Which maps of ports there are: counted once, then followed, because to look at all subjects for each change would cost
//! more than the change.

use ringfence_compile::{Program, ProtocolRange, Subject};
use ringfence_model::{Direction, Family};

use super::name::Shape;
use crate::diff::{ProgramDiff, SideDiff};

/// Ranges of up to this many ports are written port by port: a look-up in a hash map is faster, and so is deleting from
/// one (5 µs against 26 ms among 10,000 entries).
const PORTS_WRITTEN_OUT: u32 = 16;

/// How many subjects of a program have elements of each shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shapes([usize; DIRECTIONS * FAMILIES * SHAPES]);

const DIRECTIONS: usize = Direction::ALL.len();
const FAMILIES: usize = Family::ALL.len();
const SHAPES: usize = Shape::ALL.len();

impl Shapes {
    /// Of a program. Looks at all its subjects.
    pub(super) fn of(program: &Program) -> Shapes {
        let mut shapes = Shapes::default();
        for direction in Direction::ALL {
            for (address, subject) in &program.side(direction).subjects {
                shapes.count(direction, Family::of(*address), subject, 1);
            }
        }
        shapes
    }

    /// Of the program that differs by this from the one that it was counted of.
    pub(super) fn after(mut self, diff: &ProgramDiff) -> Shapes {
        for direction in Direction::ALL {
            let SideDiff { subjects, .. } = diff.side(direction);
            for (address, old) in &subjects.removed {
                self.count(direction, Family::of(*address), old, -1);
            }
            for (address, old, new) in &subjects.changed {
                self.count(direction, Family::of(*address), old, -1);
                self.count(direction, Family::of(*address), new, 1);
            }
            for (address, new) in &subjects.added {
                self.count(direction, Family::of(*address), new, 1);
            }
        }
        self
    }

    /// Whether there is such a subject.
    pub(super) fn has(&self, direction: Direction, family: Family, shape: Shape) -> bool {
        self.0[place(direction, family, shape)] > 0
    }

    fn count(&mut self, direction: Direction, family: Family, subject: &Subject, by: isize) {
        for shape in Shape::ALL.into_iter().filter(|shape| has_shape(subject, *shape)) {
            let count = &mut self.0[place(direction, family, shape)];
            *count = count.saturating_add_signed(by);
        }
    }
}

fn place(direction: Direction, family: Family, shape: Shape) -> usize {
    (direction as usize * FAMILIES + family as usize) * SHAPES + shape as usize
}

fn has_shape(subject: &Subject, shape: Shape) -> bool {
    match shape {
        Shape::Ports => subject.ports.segments().iter().any(|(range, _)| is_written_out(range)),
        Shape::Ranges => subject.ports.segments().iter().any(|(range, _)| !is_written_out(range)),
        Shape::Rest => subject.ports.rest().is_some(),
    }
}

/// Whether a range is written port by port.
pub(super) fn is_written_out(range: &ProtocolRange) -> bool {
    u32::from(range.ports.last) - u32::from(range.ports.first) < PORTS_WRITTEN_OUT
}
