//! The tables of moves against the specification, pair by pair.

use super::machine::{Machine, Rule, State};
use super::{asset, contract, deal, invoice, lead, ticket};
use crate::domain::machine::Rule as _;

/// What the specification says of an entity: each state, and behind the colon where it goes. `?` needs a reason, `$`
/// is for payments, `@` for the clock, `!` has a rule of its own.
fn holds<S: State>(machine: &Machine<S>, specification: &str) {
    let lines: Vec<(&str, Vec<&str>)> = specification
        .lines()
        .filter_map(|line| line.trim().split_once(':'))
        .map(|(from, to)| (from.trim(), to.split_whitespace().collect()))
        .collect();
    let states: Vec<&str> = S::ALL.iter().map(|state| state.as_str()).collect();
    assert_eq!(lines.iter().map(|(from, _)| *from).collect::<Vec<_>>(), states, "{}", machine.entity);
    let mut moves = 0;
    for (from, (name, targets)) in S::ALL.iter().zip(&lines) {
        for to in S::ALL {
            let mark = targets.iter().find_map(|target| target.strip_prefix(to.as_str()));
            let mark = mark.filter(|mark| mark.len() <= 1);
            let rule = machine.rule(*from, *to);
            let expected = match mark {
                None => vec![None],
                Some("") => vec![Some(Rule::Asked)],
                Some("?") => vec![Some(Rule::Reason)],
                Some("$") => vec![Some(Rule::Payment)],
                Some("@") => vec![Some(Rule::Clock)],
                Some(_) => vec![Some(Rule::Unpaid), Some(Rule::InTime)],
            };
            assert!(expected.contains(&rule), "{}: {name} to {}: {rule:?}", machine.entity, to.as_str());
            moves += usize::from(rule.is_some());
            let refused = machine.check(*from, *to, Rule::can_be_asked);
            assert_eq!(refused.is_ok(), rule.is_some_and(Rule::can_be_asked));
            if let Err(refused) = refused {
                let text = refused.to_string();
                assert!(text.contains(name) && text.contains(to.as_str()), "{text}");
                assert!(refused.allowed.iter().all(|allowed| text.contains(allowed)), "{text}");
            }
        }
        let allowed: Vec<&str> = targets
            .iter()
            .filter(|target| !target.ends_with(['$', '@']))
            .map(|target| target.trim_end_matches(['?', '!']))
            .collect();
        assert_eq!(machine.allowed(*from), allowed, "{}", machine.entity);
    }
    assert_eq!(moves, machine.moves.len(), "{}: a move stands twice", machine.entity);
}

#[test]
fn only_a_qualified_lead_converts() {
    holds(
        &lead::MACHINE,
        "NEW: CONTACTED QUALIFIED UNQUALIFIED LOST
         CONTACTED: QUALIFIED UNQUALIFIED LOST
         QUALIFIED: CONVERTED UNQUALIFIED LOST
         UNQUALIFIED: CONTACTED QUALIFIED LOST
         CONVERTED:
         LOST:",
    );
}

#[test]
fn a_closed_deal_does_not_move_and_losing_one_needs_a_reason() {
    holds(
        &deal::MACHINE,
        "PROSPECTING: QUALIFICATION PROPOSAL NEGOTIATION CLOSED_WON CLOSED_LOST?
         QUALIFICATION: PROSPECTING PROPOSAL NEGOTIATION CLOSED_WON CLOSED_LOST?
         PROPOSAL: PROSPECTING QUALIFICATION NEGOTIATION CLOSED_WON CLOSED_LOST?
         NEGOTIATION: PROSPECTING QUALIFICATION PROPOSAL CLOSED_WON CLOSED_LOST?
         CLOSED_WON:
         CLOSED_LOST:",
    );
    let by_stage: Vec<i32> = deal::DealState::ALL.iter().map(|stage| stage.probability_percent()).collect();
    assert_eq!(by_stage, [10, 25, 50, 75, 100, 0]);
}

#[test]
fn what_was_sent_may_be_signed() {
    holds(
        &contract::MACHINE,
        "draft: sent cancelled
         sent: signed expired cancelled
         signed:
         expired:
         cancelled:",
    );
}

#[test]
fn payments_and_the_clock_move_invoices() {
    holds(
        &invoice::MACHINE,
        "DRAFT: SENT ISSUED PARTIAL$ PAID$ CANCELLED
         SENT: ISSUED PARTIAL$ PAID$ OVERDUE@ CANCELLED
         ISSUED: PARTIAL$ PAID$ OVERDUE@ CANCELLED
         PARTIAL: PAID$ OVERDUE@
         PAID:
         OVERDUE: PAID$ CANCELLED!
         CANCELLED:",
    );
    let sources = invoice::MACHINE.sources(invoice::InvoiceState::Overdue, Rule::Clock);
    assert_eq!(sources, ["SENT", "ISSUED", "PARTIAL"]);
    assert_eq!(
        invoice::MACHINE.rule(invoice::InvoiceState::Overdue, invoice::InvoiceState::Cancelled),
        Some(Rule::Unpaid)
    );
}

#[test]
fn a_resolved_ticket_is_closed_or_opened_again() {
    holds(
        &ticket::MACHINE,
        "open: in_progress waiting resolved
         in_progress: waiting resolved
         waiting: in_progress resolved
         resolved: open! closed
         closed:",
    );
    assert_eq!(
        ticket::MACHINE.rule(ticket::TicketState::Resolved, ticket::TicketState::Open),
        Some(Rule::InTime)
    );
}

#[test]
fn assets_are_deployed_started_and_stopped_in_order() {
    holds(
        &asset::MACHINE,
        "ORDERED: IN_TRANSIT RECEIVED DELAYED CANCELLED
         IN_TRANSIT: RECEIVED DELAYED CANCELLED
         RECEIVED: IN_STORAGE DEPLOYED DECOMMISSIONED
         IN_STORAGE: DEPLOYED DECOMMISSIONED
         DEPLOYED: MINING MAINTENANCE DECOMMISSIONED
         MINING: DEPLOYED MAINTENANCE DECOMMISSIONED
         MAINTENANCE: MINING DECOMMISSIONED
         DELAYED: IN_TRANSIT RECEIVED CANCELLED
         CANCELLED:
         DECOMMISSIONED:",
    );
}
