//! Whether a guest still answers. Pure.
//!
//! A guest that says nothing is nothing unusual: it is quiet. So silence counts from a question on:
//! the time that it is told now and then, which it asks back for, a greeting, or whatever else
//! wants an answer. A guest that answers costs no more than before.

use tokio::time::Instant;

use super::Pace;

/// What a guest has left unanswered.
#[derive(Debug)]
pub(super) struct Hearing {
    pace: Pace,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing.
    Heard,
    /// A question: it is asked once more at this time.
    Asked(Instant),
    /// That too: it counts as silent at this time.
    AskedAgain(Instant),
    /// It counts as silent, which is told again at this time.
    Silent(Instant),
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// It is to be asked once more.
    Ask,
    /// It is to be told that it is silent.
    Tell,
}

impl Hearing {
    /// Of a guest that was asked nothing.
    pub(super) fn new(pace: Pace) -> Self {
        Self { pace, stage: Stage::Heard }
    }

    /// It was asked something.
    pub(super) fn asked(&mut self) {
        if self.stage == Stage::Heard {
            self.stage = Stage::Asked(Instant::now() + self.pace.patience);
        }
    }

    /// It has said something.
    pub(super) fn heard(&mut self) {
        self.stage = Stage::Heard;
    }

    /// Whether it counts as silent.
    pub(super) fn is_silent(&self) -> bool {
        matches!(self.stage, Stage::Silent(_))
    }

    /// It counts as silent, as somebody else has found.
    pub(super) fn silence(&mut self) {
        self.stage = Stage::Silent(Instant::now() + self.pace.question);
    }

    /// When there is something to be done unless it says something.
    pub(super) fn at(&self) -> Option<Instant> {
        match self.stage {
            Stage::Heard => None,
            Stage::Asked(at) | Stage::AskedAgain(at) | Stage::Silent(at) => Some(at),
        }
    }

    /// What is to be done now, if its time has come.
    pub(super) fn due(&mut self) -> Option<Due> {
        let now = Instant::now();
        self.at().filter(|at| *at <= now)?;
        let (stage, due) = match self.stage {
            Stage::Asked(_) => (Stage::AskedAgain(now + self.pace.patience), Due::Ask),
            _ => (Stage::Silent(now + self.pace.question), Due::Tell),
        };
        self.stage = stage;
        Some(due)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_counts_from_a_question_on_and_ends_with_any_word() {
        let pace = Pace { question: Duration::from_secs(60), patience: Duration::from_secs(15) };
        let mut hearing = Hearing::new(pace);
        assert_eq!(hearing.at(), None, "a quiet guest is not looked after");
        hearing.asked();
        tokio::time::advance(Duration::from_secs(10)).await;
        hearing.asked();
        assert_eq!(hearing.due(), None);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(hearing.due(), Some(Due::Ask), "counted from the first question");
        assert!(!hearing.is_silent());
        hearing.heard();
        assert_eq!(hearing.at(), None);
        hearing.asked();
        for (seconds, due) in [(15, Due::Ask), (15, Due::Tell), (60, Due::Tell)] {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            assert_eq!(hearing.due(), Some(due));
            hearing.asked();
        }
        assert!(hearing.is_silent());
        hearing.heard();
        assert!(!hearing.is_silent());
        hearing.silence();
        assert!(hearing.is_silent() && hearing.due().is_none());
    }
}
