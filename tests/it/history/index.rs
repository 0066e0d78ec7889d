//! The history by what its parts have in common.

use std::collections::HashMap;

use hashinsight::event::kind;
use uuid::Uuid;

use super::log::{Lane, Logged};
use super::tables::{Dead, Event, Parked, Received};
use super::{History, Op};

pub(super) struct Index<'a> {
    pub(super) events: HashMap<Uuid, &'a Event>,
    /// What a request caused, in the order of position.
    pub(super) by_request: HashMap<&'a str, Vec<&'a Event>>,
    pub(super) ops: HashMap<&'a str, &'a Op>,
    /// Of the group.
    pub(super) inbox: HashMap<Uuid, &'a Received>,
    pub(super) parked: HashMap<Uuid, &'a Parked>,
    pub(super) dead: HashMap<Uuid, &'a Dead>,
    /// The events that brought a miner, by the miner.
    pub(super) added: HashMap<&'a str, &'a Event>,
    /// The first record of each event.
    pub(super) first: HashMap<Uuid, (&'a Lane, &'a Logged)>,
}

impl<'a> Index<'a> {
    pub(super) fn of(history: &'a History) -> Self {
        let (tables, group) = (&history.tables, history.group.as_str());
        let mut by_request: HashMap<&str, Vec<&Event>> = HashMap::new();
        for event in &tables.outbox {
            by_request.entry(event.request_id()).or_default().push(event);
        }
        let mut first = HashMap::new();
        for (lane, records) in &history.topics.0 {
            for record in records {
                if let Some(id) = record.event_id {
                    first.entry(id).or_insert((lane, record));
                }
            }
        }
        let dead = tables.dead.iter().filter(|d| d.consumer_name == group);
        Self {
            events: tables.outbox.iter().map(|e| (e.id, e)).collect(),
            by_request,
            ops: history.ops.iter().map(|op| (op.request_id.as_str(), op)).collect(),
            inbox: tables
                .inbox
                .iter()
                .filter(|r| r.consumer_name == group)
                .map(|r| (r.event_id, r))
                .collect(),
            parked: tables
                .parked
                .iter()
                .filter(|p| p.consumer_name == group)
                .map(|p| (p.event_id, p))
                .collect(),
            dead: dead.filter_map(|d| Some((d.event_id?, d))).collect(),
            added: tables
                .outbox
                .iter()
                .filter(|e| e.event_type == kind::MINER_ADDED)
                .map(|e| (e.aggregate_id.as_str(), e))
                .collect(),
            first,
        }
    }
}
