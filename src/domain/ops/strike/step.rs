//! Owns where the automation of a site stands, and what the windows that it had not seen do to it.
//! Promises that no window counts from before the rule was set, and a cause for each switch.
//! Called by the automation.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::domain::ops::settings::Settings;
use crate::economics::curtailment::automation::WINDOW_SECONDS;
use crate::economics::curtailment::{
    PriceWindow, StrikeAction, StrikePhase, StrikeRule, StrikeState, automation,
};
use crate::identifier::UserId;

/// The automation of a user's site, as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct Automation {
    #[serde(skip)]
    pub owner_id: UserId,
    pub market: String,
    /// `running` or `curtailed`.
    pub phase: String,
    /// Windows towards the next switch.
    pub windows: i16,
    /// Number of the newest window seen: its start in Unix seconds / 300.
    pub last_window: i64,
    /// When the phase began.
    pub since: DateTime<Utc>,
    /// When the site last could run again; nothing if it was never off.
    pub resumed_at: Option<DateTime<Utc>>,
}

impl Automation {
    pub(super) fn state(&self) -> StrikeState {
        let windows = u8::try_from(self.windows).unwrap_or(u8::MAX);
        let phase = match self.phase.as_str() {
            "curtailed" => StrikePhase::Curtailed { below: windows },
            _ => StrikePhase::Running { above: windows },
        };
        StrikeState { phase, last_window: u64::try_from(self.last_window).ok() }
    }

    pub(super) fn is_curtailed(&self) -> bool {
        matches!(self.state().phase, StrikePhase::Curtailed { .. })
    }

    /// The start of the newest window seen.
    pub fn as_of(&self) -> DateTime<Utc> {
        let seconds = i64::try_from(WINDOW_SECONDS).ok().and_then(|slot| self.last_window.checked_mul(slot));
        seconds.and_then(|seconds| DateTime::from_timestamp(seconds, 0)).unwrap_or_default()
    }
}

/// What the windows that one site had not seen did to it.
pub(super) struct Step {
    before: StrikePhase,
    pub(super) after: StrikeState,
    /// Number of the newest.
    pub(super) last: u64,
    /// The window that made the last switch, with its price at the site; nothing without one.
    pub(super) cause: Option<PriceWindow>,
}

impl Step {
    /// Nothing without a new window. A site that never saw one begins with that of this moment; one whose rule was set anew
    /// with that of the rule. While the rule is on, a change of it takes no count away.
    pub(super) fn of(
        site: &Settings,
        rule: &StrikeRule,
        before: Option<&Automation>,
        windows: &[PriceWindow],
        now: u64,
    ) -> Option<Self> {
        let start = before.map(Automation::state).unwrap_or_default();
        let set = site.strike_since.or(site.updated_at).map(|at| at.timestamp());
        let set = set.and_then(|at| u64::try_from(at).ok()).unwrap_or_default() / WINDOW_SECONDS;
        let first = start.last_window.map_or(now, |last| (last + 1).max(set));
        let (mut state, mut last, mut cause) = (start, None, None);
        for window in windows.iter().filter(|window| window.index >= first) {
            let price_usd_mwh = window.price_usd_mwh + site.delivery_usd_mwh;
            let at_the_site = PriceWindow { price_usd_mwh, ..*window };
            let (next, action) = automation::observe(rule, state, &at_the_site);
            (state, last) = (next, Some(window.index));
            if action != StrikeAction::Hold {
                cause = Some(at_the_site);
            }
        }
        last.map(|last| Self { before: start.phase, after: state, last, cause })
    }

    /// Whether the site goes off, and whether it is let go. What was undone before anybody heard of it is neither.
    pub(super) fn switched(&self) -> (bool, bool) {
        let off = |phase: &StrikePhase| matches!(phase, StrikePhase::Curtailed { .. });
        let (was, is) = (off(&self.before), off(&self.after.phase));
        (!was && is, was && !is)
    }
}
