//! The writers' log read from the node's disk: it needs no kubelet, no container runtime and no API server to be alive.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use crate::cluster::Cluster;
use crate::load::Ack;
use crate::{Outcome, Problem};

/// The log of the writers of one pod.
#[derive(Clone, Debug)]
pub struct Acks {
    file: PathBuf,
}

/// A time without any commit, between two acknowledgements; microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stall {
    /// The last acknowledgement before it.
    pub from: i64,
    /// The first after it.
    pub to: i64,
}

impl Stall {
    /// How long.
    pub const fn micros(self) -> i64 {
        self.to - self.from
    }

    /// Whether an instant lies in it.
    pub const fn holds(self, instant: i64) -> bool {
        self.from < instant && instant < self.to
    }
}

impl Acks {
    /// The log in the emptyDir `acks` of a pod.
    pub fn of(cluster: &Cluster, pod_uid: &str) -> Self {
        let path = format!("kubelet/pods/{pod_uid}/volumes/kubernetes.io~empty-dir/acks/acks");
        Self { file: cluster.state(&path) }
    }

    /// How long it is now, in bytes: a place to read from later.
    pub fn length(&self) -> u64 {
        std::fs::metadata(&self.file).map_or(0, |file| file.len())
    }

    /// Commits from a place on, by the time of their acknowledgement.
    ///
    /// # Errors
    /// It cannot be read, or a line is not understood.
    pub fn since(&self, place: u64) -> Outcome<Vec<Ack>> {
        let bytes = read_from(&self.file, place)?;
        let text = String::from_utf8_lossy(&bytes);
        let complete = text.rfind('\n').map_or("", |end| text.get(..end).unwrap_or_default());
        let mut acks = Vec::new();
        for line in complete.lines() {
            let mut fields = line.split(' ').skip(2).map(str::parse::<i64>);
            match (fields.next(), fields.next()) {
                (Some(Ok(started)), Some(Ok(acked))) => acks.push(Ack { started, acked }),
                _ => return Err(Problem(format!("a line of the writers' log is not understood: {line:?}"))),
            }
        }
        acks.sort_unstable_by_key(|ack| ack.acked);
        Ok(acks)
    }
}

/// Times without a commit of at least `least` microseconds, in order.
pub fn stalls(acks: &[Ack], least: i64) -> Vec<Stall> {
    let pairs = acks.iter().zip(acks.iter().skip(1));
    pairs
        .map(|(one, next)| Stall { from: one.acked, to: next.acked })
        .filter(|stall| stall.micros() >= least)
        .collect()
}

/// The bytes of a file from a place on; none where it does not exist.
///
/// # Errors
/// It cannot be read.
pub fn read_from(file: &Path, place: u64) -> Outcome<Vec<u8>> {
    let mut opened = match std::fs::File::open(file) {
        Ok(opened) => opened,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    opened.seek(SeekFrom::Start(place))?;
    let mut bytes = Vec::new();
    opened.read_to_end(&mut bytes)?;
    Ok(bytes)
}
