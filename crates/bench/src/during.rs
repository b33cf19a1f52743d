//! What packets meet while the node's rules are written, all the time and as fast as the filter can.
//!
//! One thread writes. Another one sends, on another processor if there is one: a packet of an open flow, the first packet of
//! a new one, and two that no state of the policies allows, again and again. The policies change between two states that
//! allow different things by different rules, so a filter that mixes them for a moment lets one of the two through.

use std::error::Error;
use std::io;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use comfy_table::Table;
use ringfence_lab::NetNs;
use ringfence_model::Object;
use serde::Serialize;

use crate::cluster::{PORT, State, remote};
use crate::compile::Size;
use crate::filter::{Enforced, Filter};
use crate::report::{Report, chain, markdown, percentile};
use crate::site::Site;

/// After how long the first packet of a new flow is sent again when it did not arrive.
const RETRY: Duration = Duration::from_millis(1);
/// When a new flow is given up.
const GIVEN_UP: Duration = Duration::from_secs(5);
/// How many flows have their sockets open at one time.
const BATCH: usize = 200;

/// What is done meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Activity {
    Nothing,
    FullLoads,
    RemotePod,
    Policies,
}

impl Activity {
    const ALL: [Activity; 4] = [Activity::Nothing, Activity::FullLoads, Activity::RemotePod, Activity::Policies];

    fn as_str(self) -> &'static str {
        match self {
            Activity::Nothing => "nothing",
            Activity::FullLoads => "full loads",
            Activity::RemotePod => "an allowed remote pod comes and goes",
            Activity::Policies => "policies and a label change to and fro",
        }
    }
}

/// What packets met during one activity with one filter.
#[derive(Serialize)]
pub(crate) struct During {
    filter: String,
    size: Size,
    activity: Activity,
    changes: usize,
    seconds: f64,
    open_flow_sent: usize,
    open_flow_lost: usize,
    new_flows: usize,
    /// Whose first packet did not arrive.
    new_flows_that_waited: usize,
    /// Of those, who were told that they are refused.
    new_flows_refused: usize,
    wait_us: f64,
    wait_p99_us: f64,
    wait_max_us: f64,
    forbidden_sent: usize,
    forbidden_through: usize,
}

pub(crate) fn measure(
    size: Size,
    each: Duration,
    filters: &[Filter],
    report: &mut Report,
) -> Result<(), Box<dyn Error>> {
    for filter in filters {
        report.progress(&format!("packets while {filter} writes: {size} pods/policies/namespaces"));
        let site = Site::new(&filter.to_string(), || Ok(()))?;
        let node = site.node()?.share()?;
        let stop = AtomicBool::new(false);
        let (order, orders) = mpsc::channel();
        let (answer, answers) = mpsc::channel();
        let all = thread::scope(|scope| -> Result<Vec<During>, Box<dyn Error>> {
            // Dropped at the end of this closure, which ends the thread.
            let order = order;
            let stop = &stop;
            scope.spawn(move || write(&node, *filter, size, stop, &orders, &answer));
            // The answer to nothing: the first load.
            answers.recv()??;
            let probes = Probes::new(&site)?;
            let mut all = Vec::new();
            for activity in Activity::ALL {
                stop.store(false, Ordering::SeqCst);
                order.send(activity)?;
                let mut during = probes.during(&site, each)?;
                stop.store(true, Ordering::SeqCst);
                during.changes = answers.recv()??;
                all.push(During { filter: filter.to_string(), size, activity, ..during });
            }
            Ok(all)
        });
        match all {
            Ok(all) => report.during.extend(all),
            // Without root's rights not all sizes can be loaded.
            Err(error) => report.skipped(&format!("packets while {filter} writes {size}: {}", chain(&*error))),
        }
    }
    Ok(())
}

/// Loads the program, then makes changes as ordered until told to stop, and answers how many.
fn write(
    node: &NetNs,
    filter: Filter,
    size: Size,
    stop: &AtomicBool,
    orders: &mpsc::Receiver<Activity>,
    answer: &mpsc::Sender<Result<usize, String>>,
) {
    // Nobody listens any more when the other thread has failed.
    let said = |result: Result<usize, Box<dyn Error>>| answer.send(result.map_err(|error| chain(&*error)));
    let objects = || size.mix().objects().chain(State::First.objects()).collect();
    let loaded = node.within(|| filter.enforce(objects())).map_err(Box::from).and_then(|loaded| loaded);
    let (mut enforced, _) = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            let _ = said(Err(error));
            return;
        }
    };
    let _ = said(Ok(0));
    for activity in orders {
        let made = node.within(|| changes(&mut *enforced, activity, stop)).map_err(Box::from).and_then(|made| made);
        let _ = said(made);
    }
}

fn changes(enforced: &mut dyn Enforced, activity: Activity, stop: &AtomicBool) -> Result<usize, Box<dyn Error>> {
    // No pod of the mix has its address.
    const NUMBER: u32 = 249 << 16;
    let pod: Object = remote(NUMBER);
    let mut made = 0;
    // In the end the cluster is as it was.
    while !stop.load(Ordering::SeqCst) || made % 2 == 1 {
        match activity {
            Activity::Nothing => {
                thread::sleep(RETRY);
                continue;
            }
            Activity::FullLoads => enforced.reload()?,
            Activity::RemotePod if made % 2 == 0 => enforced.change(vec![pod.clone()])?,
            Activity::RemotePod => enforced.delete(&pod.key())?,
            Activity::Policies => {
                let state = if made % 2 == 0 { State::Second } else { State::First };
                enforced.change(state.objects().into())?
            }
        };
        made += 1;
    }
    Ok(made)
}

/// Who sends and who hears.
struct Probes {
    open: UdpSocket,
    /// Where packets arrive that no state allows, and who sends them.
    forbidden: Vec<(UdpSocket, UdpSocket)>,
}

impl Probes {
    fn new(site: &Site) -> Result<Probes, Box<dyn Error>> {
        let open = site.open_flow()?;
        let pairs = State::FORBIDDEN_PORTS.map(|port| {
            let caller = site.calls(port, 1)?.pop().ok_or("no socket")?;
            Ok((site.listener(port)?, caller))
        });
        let forbidden = pairs.into_iter().collect::<Result<_, Box<dyn Error>>>()?;
        Ok(Probes { open, forbidden })
    }

    fn during(&self, site: &Site, length: Duration) -> Result<During, Box<dyn Error>> {
        let mut during = During {
            filter: String::new(),
            size: Size::default(),
            activity: Activity::Nothing,
            changes: 0,
            seconds: 0.0,
            open_flow_sent: 0,
            open_flow_lost: 0,
            new_flows: 0,
            new_flows_that_waited: 0,
            new_flows_refused: 0,
            wait_us: 0.0,
            wait_p99_us: 0.0,
            wait_max_us: 0.0,
            forbidden_sent: 0,
            forbidden_through: 0,
        };
        // The open flow numbers its packets from the upper end, the others are numbered one by one.
        const OPEN: u64 = 1 << 63;
        let mut heard_open = 0;
        let mut waits = Vec::new();
        let start = Instant::now();
        while start.elapsed() < length {
            for flow in site.calls(PORT, BATCH)? {
                self.open.send(&OPEN.to_be_bytes())?;
                during.open_flow_sent += 1;
                for (_, caller) in &self.forbidden {
                    // It may hear of the refusal of the packet before.
                    during.forbidden_sent += usize::from(caller.send(&OPEN.to_be_bytes()).is_ok());
                }
                let number = during.new_flows as u64;
                during.new_flows += 1;
                let sent = Instant::now();
                let (mut tries, mut refused) = (0, false);
                let wait = 'flow: loop {
                    refused |= flow.send(&number.to_be_bytes()).is_err();
                    tries += 1;
                    let tried = Instant::now();
                    while tried.elapsed() < RETRY {
                        let mut here = false;
                        self.arrived(site, |got| {
                            here |= got == number;
                            heard_open += usize::from(got == OPEN);
                        })?;
                        if here {
                            break 'flow sent.elapsed();
                        }
                    }
                    if sent.elapsed() > GIVEN_UP {
                        return Err("an allowed flow is never let through".into());
                    }
                };
                refused |= flow.take_error()?.is_some();
                waits.push(wait.as_secs_f64() * 1e6);
                during.new_flows_that_waited += usize::from(tries > 1);
                during.new_flows_refused += usize::from(refused);
            }
            self.count_forbidden(&mut during)?;
        }
        during.seconds = start.elapsed().as_secs_f64();
        // What was put off arrives now.
        thread::sleep(10 * RETRY);
        self.arrived(site, |got| heard_open += usize::from(got == OPEN))?;
        self.count_forbidden(&mut during)?;
        during.open_flow_lost = during.open_flow_sent - heard_open;
        [during.wait_us, during.wait_p99_us, during.wait_max_us] =
            [50, 99, 100].map(|rank| percentile(waits.clone(), rank));
        Ok(during)
    }

    /// All that has arrived at the server's open port.
    fn arrived(&self, site: &Site, mut heard: impl FnMut(u64)) -> Result<(), Box<dyn Error>> {
        let mut buffer = [0; 8];
        loop {
            match site.server().recv(&mut buffer) {
                Ok(_) => heard(u64::from_be_bytes(buffer)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn count_forbidden(&self, during: &mut During) -> Result<(), Box<dyn Error>> {
        for (listener, _) in &self.forbidden {
            loop {
                match listener.recv(&mut [0; 8]) {
                    Ok(_) => during.forbidden_through += 1,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}

/// What was measured.
pub(crate) fn tables(all: &[During]) -> Vec<(String, Table)> {
    let mut table = markdown(&[
        "packet filter",
        "meanwhile",
        "changes/s",
        "open flow: lost of sent",
        "new flows",
        "whose first packet was lost",
        "of them refused",
        "first packet waits, µs",
        "p99, µs",
        "longest, µs",
        "forbidden packets through",
    ]);
    for row in all {
        table.add_row([
            row.filter.clone(),
            row.activity.as_str().to_owned(),
            format!("{:.0}", row.changes as f64 / row.seconds),
            format!("{} of {}", row.open_flow_lost, row.open_flow_sent),
            row.new_flows.to_string(),
            row.new_flows_that_waited.to_string(),
            row.new_flows_refused.to_string(),
            format!("{:.1}", row.wait_us),
            format!("{:.0}", row.wait_p99_us),
            format!("{:.0}", row.wait_max_us),
            format!("{} of {}", row.forbidden_through, row.forbidden_sent),
        ]);
    }
    let size = all.first().map(|row| row.size.to_string()).unwrap_or_default();
    vec![(format!("Packets while rules are written without a pause: {size} pods/policies/namespaces"), table)]
}
