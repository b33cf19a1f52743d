//! What is known about our table, and how that changes with what is heard of others.

use super::alarm::News;

/// Whether our table is as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is.
    Intact {
        /// The last transaction, anybody's, of which that is known.
        last: u32,
        /// Some of those before were announced to be about other tables, and nobody has looked since.
        on_trust: bool,
    },
    /// Somebody has written to it. What, for people.
    Tampered(String),
    /// Nobody knows.
    Unknown,
}

/// The number of the transaction after this one: the kernel counts by one and leaves out zero (`nf_tables_commit`).
pub(super) fn next(number: u32) -> u32 {
    number.checked_add(1).unwrap_or(1)
}

impl Standing {
    /// As it should be by our own work, as of this transaction.
    pub(super) fn sure(last: u32) -> Standing {
        Standing::Intact { last, on_trust: false }
    }

    /// What was heard happens to it.
    pub(super) fn follow(&mut self, news: News) {
        let Standing::Intact { last, on_trust } = self else {
            return;
        };
        match news {
            // What was before is over: we have looked or written since.
            News::Transaction { number, .. } if !is_after(number, *last) => {}
            News::Transaction { harm: Some(harm), .. } => *self = Standing::Tampered(harm),
            News::Transaction { number, harm: None } if number == next(*last) => (*last, *on_trust) = (number, true),
            News::Transaction { .. } | News::Missed => *self = Standing::Unknown,
        }
    }
}

/// Numbers start again after the last one.
fn is_after(number: u32, other: u32) -> bool {
    number.wrapping_sub(other).cast_signed() > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn followed(mut standing: Standing, news: &[(u32, Option<&str>)]) -> Standing {
        for (number, harm) in news {
            standing.follow(News::Transaction { number: *number, harm: harm.map(str::to_owned) });
        }
        standing
    }

    #[test]
    fn others_about_their_own() {
        let standing = followed(Standing::sure(7), &[(8, None), (9, None)]);
        assert_eq!(standing, Standing::Intact { last: 9, on_trust: true });
        // Zero is left out.
        let standing = followed(Standing::sure(u32::MAX - 1), &[(u32::MAX, None), (1, None), (2, None)]);
        assert_eq!(standing, Standing::Intact { last: 2, on_trust: true });
    }

    #[test]
    fn others_about_ours() {
        let standing = followed(Standing::sure(7), &[(8, None), (9, Some("harm")), (10, None), (11, Some("more"))]);
        assert_eq!(standing, Standing::Tampered("harm".to_owned()));
    }

    #[test]
    fn what_is_over_does_not_count() {
        assert_eq!(followed(Standing::sure(7), &[(6, Some("harm")), (7, Some("harm"))]), Standing::sure(7));
        assert_eq!(followed(Standing::sure(1), &[(u32::MAX, Some("harm"))]), Standing::sure(1));
    }

    #[test]
    fn a_gap_or_a_loss_leaves_nothing_known() {
        assert_eq!(followed(Standing::sure(7), &[(9, None), (10, None)]), Standing::Unknown);
        let mut standing = Standing::sure(7);
        standing.follow(News::Missed);
        assert_eq!(standing, Standing::Unknown);
        // Better known to be bad than unknown.
        assert_eq!(followed(Standing::sure(7), &[(9, Some("harm"))]), Standing::Tampered("harm".to_owned()));
    }
}
