//! Has programs go on after the machine stood still.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use caddis_guest_protocol::GuestMessage;

use super::Guest;
use crate::{configure, image_files};

/// How long programs stand still at most until the host's time is known exactly.
const TIME_TIMEOUT: Duration = Duration::from_secs(1);
/// Says `resume` after the machine was resumed: a program that can't notice may look there.
const START_KIND: &str = "/.caddis/start_kind";
const RESUMED: &str = "resume\n";

impl Guest {
    /// Makes ready for programs to go on, which they do when the host's time is known.
    pub(super) fn thaw(&mut self, id: u32, time_ns: u64, entropy: &str, resumed: bool) {
        let renewed = configure::renew(entropy, time_ns);
        self.warn(renewed);
        if resumed {
            self.tell_resume();
        }
        if !resumed && self.told_resume == Some(true) {
            // It was not to be.
            self.warn(
                std::fs::remove_file(START_KIND)
                    .map_err(|error| format!("can't remove {START_KIND}: {error}")),
            );
        }
        self.told_resume = None;
        self.thawing = Some((id, Instant::now() + TIME_TIMEOUT));
        self.sync.begin();
        self.ask_time();
    }

    /// Says to programs, which stand still, how the VM was started when they go on.
    pub(super) fn tell_resume(&mut self) {
        if self.told_resume.is_some() {
            return;
        }
        // Of an earlier one.
        if image_files::read(START_KIND).is_ok_and(|told| told == RESUMED) {
            self.told_resume = Some(false);
            return;
        }
        let told =
            image_files::write(Path::new(START_KIND), RESUMED.as_bytes(), image_files::Mode::Kept);
        self.told_resume = told.is_ok().then_some(true);
        self.warn(told);
    }

    /// Programs that were to go on do.
    pub(super) fn finish_thaw(&mut self) {
        if let Some((id, _)) = self.thawing.take() {
            self.freezer.thaw();
            self.answer(id, Ok(()));
        }
    }

    pub(super) fn ask_time(&mut self) {
        let id = self.sync.ask();
        self.port.send(&GuestMessage::AskTime { id }, b"");
    }
}
