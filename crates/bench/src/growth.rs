//! What packets cost as the policies of the probed pod become more, and as the namespaces on the node do.

use std::error::Error;

use crate::cluster::{apart, crowd};
use crate::filter::Filter;
use crate::report::{Report, chain, median, ratios};
use crate::site::{Site, conntrack_only};

/// Namespaces on the node while policies grow, and policies of the probed pod while namespaces grow.
const FEWEST: (u16, u16) = (1, 10);

/// Namespaces on the node, policies of the probed pod, and whether each policy speaks of another app.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size {
    pub(crate) namespaces: u16,
    pub(crate) policies: u16,
    pub(crate) apart: bool,
}

/// A site, and the medians of its rounds, in microseconds.
struct Series {
    size: Option<Size>,
    site: Site,
    first: Vec<f64>,
    established: Vec<f64>,
}

pub(crate) fn measure(
    (namespaces, policies): (&[u16], &[u16]),
    filters: &[Filter],
    rounds: usize,
    flows: usize,
    report: &mut Report,
) -> Result<(), Box<dyn Error>> {
    let size = |namespaces: u16, policies: u16, apart| Size { namespaces, policies, apart };
    let mut sizes: Vec<Size> = policies.iter().map(|policies| size(FEWEST.0, *policies, false)).collect();
    sizes.extend(policies.iter().max().map(|policies| size(FEWEST.0, *policies, true)));
    sizes.extend(namespaces.iter().map(|namespaces| size(*namespaces, FEWEST.1, false)));
    sizes.sort_unstable();
    sizes.dedup();

    let series = |size, site| Series { size, site, first: Vec::new(), established: Vec::new() };
    let mut all = vec![series(None, Site::new("conntrack only", conntrack_only)?)];
    for filter in filters {
        report.progress(&format!("loading {filter}, {} sizes", sizes.len()));
        for &size in &sizes {
            let Size { namespaces, policies, .. } = size;
            let objects = if size.apart { apart(policies) } else { crowd(namespaces, policies) };
            let load = || filter.enforce(objects).map(|_| ());
            match Site::new(&filter.to_string(), load) {
                Ok(site) => {
                    site.check_refusal()?;
                    all.push(series(Some(size), site));
                }
                // Without root's rights iptables-nft cannot send many rules at once.
                Err(error) => {
                    let size = format!("{namespaces} namespaces, {policies} policies");
                    report.skipped(&format!("packets, {size}: {filter}: {}", chain(&*error)));
                }
            }
        }
    }
    for round in 0..=rounds {
        report.progress(&format!("packets, round {round} of {rounds}"));
        for Series { site, first, established, .. } in &mut all {
            let sample = (site.first_packets(flows)?, site.established(flows)?);
            // The first round warms caches and is not counted.
            if round > 0 {
                first.push(sample.0);
                established.push(sample.1);
            }
        }
    }
    for Series { size, site, first, established } in &all {
        let against = |series: &[f64], baseline: &[f64]| (median(series.to_vec()), median(ratios(series, baseline)));
        report.growth(site.name(), *size, against(first, &all[0].first), against(established, &all[0].established));
    }
    Ok(())
}
