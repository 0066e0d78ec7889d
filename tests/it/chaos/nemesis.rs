//! Does what the schedule says, and undoes it.

use futures_util::future::join_all;
use tokio::time::{Instant, sleep, sleep_until};

use super::schedule::{Fault, GUEST, Planned};
use super::stage::Stage;
use super::watch::micros;
use crate::history::Hindered;
use crate::support::proxy::Mode;
use crate::support::tap::Flow;

/// Returns when every fault is over, with what hindered whom. One that meets the victim of another waits until that is
/// over.
pub(crate) async fn run(stage: &Stage, schedule: &[Planned], began: Instant) -> Vec<Hindered> {
    let faults = schedule.iter().map(|planned| async move {
        sleep_until(began + planned.at).await;
        let from = micros(began);
        suffer(stage, *planned).await;
        let hinders = matches!(planned.fault, Fault::Freeze(_) | Fault::Sever(..));
        hinders.then(|| Hindered { role: planned.fault.victim().to_owned(), from, to: micros(began) })
    });
    join_all(faults).await.into_iter().flatten().collect()
}

async fn suffer(stage: &Stage, planned: Planned) {
    let lasting = sleep(planned.lasting);
    match planned.fault {
        Fault::Kill(name) => {
            let mut role = stage.role(name).lock().await;
            role.kill().await;
            lasting.await;
            role.start();
        }
        Fault::Freeze(name) => {
            let role = stage.role(name).lock().await;
            role.signal("STOP");
            lasting.await;
            role.signal("CONT");
        }
        Fault::Leave(name) => {
            let mut role = stage.role(name).lock().await;
            role.terminate().await;
            lasting.await;
            role.start();
        }
        Fault::Join => {
            let mut guest = stage.role(GUEST).lock().await;
            guest.start();
            lasting.await;
            guest.terminate().await;
        }
        Fault::FreezeBroker => {
            let broker = stage.broker.lock().await;
            broker.pause().await;
            lasting.await;
            broker.resume().await;
        }
        Fault::KillBroker => {
            let mut broker = stage.broker.lock().await;
            broker.kill().await;
            lasting.await;
            broker.restart().await;
        }
        Fault::FreezeDatabase => {
            let cluster = stage.cluster.lock().await;
            cluster.freeze();
            lasting.await;
            cluster.thaw();
        }
        Fault::CrashDatabase => {
            let mut cluster = stage.cluster.lock().await;
            cluster.kill().await;
            lasting.await;
            cluster.restart().await;
        }
        Fault::Cut(wire, mode) => {
            let wire = stage.wire(wire);
            wire.set(mode);
            lasting.await;
            wire.set(Mode::Forward);
        }
        Fault::Sever(name, flow) => {
            let tap = &stage.taps[name];
            tap.set(flow);
            lasting.await;
            tap.set(Flow::Open);
        }
    }
}
