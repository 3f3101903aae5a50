//! The policy against a model of a few lines: after any sequence of requests and of what happens
//! meanwhile, a machine ends where the last request that was accepted wants it.

use caddis_api::MachineState as S;
use proptest::prelude::*;

use super::*;

/// What users may rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Rests,
    Runs,
    Saved,
    Gone,
}

impl Wish {
    /// After an accepted request. `can_suspend`: of a machine that can be saved.
    fn after(self, request: Request, can_suspend: bool) -> Self {
        match (self, request) {
            // Nothing undoes a destroy.
            (Self::Gone, _) | (_, Request::Destroy { .. }) => Self::Gone,
            (_, Request::Start | Request::Restart | Request::Wake) => Self::Runs,
            (_, Request::Stop) => Self::Rests,
            (_, Request::Suspend) => Self::Saved,
            (_, Request::Sleep { suspend }) if suspend && can_suspend => Self::Saved,
            (_, Request::Sleep { .. }) => Self::Rests,
            // The new version has nothing to go on with that the old one saved.
            (Self::Saved, Request::Update) => Self::Rests,
            (_, Request::Update | Request::Signal) => self,
        }
    }

    fn is_fulfilled_in(self, state: S) -> bool {
        match self {
            Self::Rests => matches!(state, S::Created | S::Stopped | S::Failed),
            Self::Runs => state == S::Started,
            Self::Saved => state == S::Suspended,
            Self::Gone => state == S::Destroyed,
        }
    }
}

/// What is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Create,
    Do(Goal),
    UpdateAtRest,
    CancelSuspend,
    Exit { restarts: bool },
    Abandon,
}

/// A machine that does as the policy says: what `owner` does, without doing anything.
#[derive(Debug)]
struct Subject {
    state: S,
    work: Option<Work>,
    next: Option<Goal>,
    launched: bool,
}

#[derive(Debug, Clone, Copy)]
enum Event {
    /// `late`: where it makes a difference, all is saved already, or nothing can be.
    Request { request: Request, late: bool },
    /// What is under way ends well.
    Ends,
    /// What is under way comes to nothing.
    Fails,
    /// The program ends by itself.
    Exits { restarts: bool },
}

impl Subject {
    fn begin(&mut self, work: Work) {
        self.state = match work {
            Work::Create => S::Creating,
            Work::Do(Goal::Start | Goal::StartAndSuspend | Goal::Resume) | Work::CancelSuspend => {
                S::Starting
            }
            Work::Do(Goal::Stop) | Work::Exit { .. } | Work::Abandon => S::Stopping,
            Work::Do(Goal::Restart) => S::Restarting,
            Work::Do(Goal::Suspend) => S::Suspending,
            Work::Do(Goal::Update) | Work::UpdateAtRest => S::Replacing,
            Work::Do(Goal::Destroy) => S::Destroying,
        };
        self.work = Some(work);
        if work == Work::Do(Goal::StartAndSuspend) {
            (self.work, self.next) = (Some(Work::Do(Goal::Start)), Some(Goal::Suspend));
        }
    }

    /// Whether it was accepted.
    fn request(&mut self, request: Request, late: bool, wish: Wish) -> bool {
        let next = match self.next {
            Some(Goal::Destroy) => Next::Destroy,
            Some(Goal::Start | Goal::StartAndSuspend) => Next::Start,
            _ => Next::Other,
        };
        let situation = Situation {
            next,
            updates_at_rest: self.work == Some(Work::UpdateAtRest),
            is_saved: late,
            can_suspend: !late,
            restarts: self.work == Some(Work::Exit { restarts: true }),
            ..Situation::of(self.state)
        };
        let verdict = decide(&situation, request);
        match verdict {
            Verdict::Begin(goal) => {
                assert_eq!(
                    (self.work, self.next),
                    (None, None),
                    "{goal:?} begins over something in {:?}",
                    self.state
                );
                self.take_on(goal, wish);
            }
            Verdict::Supersede(goal) => {
                let breaks_off =
                    self.work.is_some() || (goal, self.state) == (Goal::Destroy, S::Started);
                assert!(breaks_off, "{goal:?} breaks off nothing in {:?}", self.state);
                self.take_on(goal, wish);
            }
            Verdict::Queue(goal) => {
                assert!(self.work.is_some(), "{goal:?} waits for nothing in {:?}", self.state);
                self.next = Some(goal);
            }
            Verdict::CancelSuspend => self.begin(Work::CancelSuspend),
            Verdict::Done | Verdict::Unqueue | Verdict::SkipBackOff => self.unqueue(),
            Verdict::ShortenStop => {
                self.unqueue();
                if self.work == Some(Work::Exit { restarts: true }) {
                    self.work = Some(Work::Exit { restarts: false });
                }
            }
            Verdict::Deliver | Verdict::Wait => {}
            Verdict::Refuse(_) | Verdict::StayAwake(_) => return false,
        }
        true
    }

    fn take_on(&mut self, goal: Goal, wish: Wish) {
        self.next = None;
        let runs = wish == Wish::Runs || self.state == S::Failed;
        self.begin(if goal == Goal::Update && !runs { Work::UpdateAtRest } else { Work::Do(goal) });
    }

    fn unqueue(&mut self) {
        self.next = self.next.filter(|next| *next == Goal::Destroy);
    }

    /// The outcome of what is under way; what follows begins.
    fn ends(&mut self, well: bool) {
        let Some(work) = self.work.take() else { return };
        if !well && !matches!(work, Work::Abandon | Work::Do(Goal::Destroy)) {
            self.unqueue();
            // A suspend that fails costs nothing.
            return self.begin(if work == Work::Do(Goal::Suspend) {
                Work::CancelSuspend
            } else {
                Work::Abandon
            });
        }
        self.state = match work {
            Work::Create => S::Created,
            Work::Do(
                Goal::Start | Goal::StartAndSuspend | Goal::Resume | Goal::Restart | Goal::Update,
            )
            | Work::CancelSuspend => S::Started,
            Work::Do(Goal::Suspend) => S::Suspended,
            Work::UpdateAtRest if !self.launched => S::Created,
            Work::Do(Goal::Stop) | Work::Exit { .. } | Work::UpdateAtRest => S::Stopped,
            Work::Do(Goal::Destroy) if well => S::Destroyed,
            Work::Do(Goal::Destroy) | Work::Abandon => S::Failed,
        };
        self.launched |= self.state == S::Started;
        if self.state == S::Started && self.next == Some(Goal::Start) {
            self.next = None;
        }
        match (self.next.take(), work) {
            (Some(next), _) => self.begin(Work::Do(next)),
            (None, Work::Exit { restarts: true }) => self.begin(Work::Do(Goal::Start)),
            _ => {}
        }
    }
}

fn event() -> impl Strategy<Value = Event> {
    let request = prop_oneof![
        4 => Just(Request::Start),
        4 => Just(Request::Stop),
        2 => Just(Request::Restart),
        4 => Just(Request::Suspend),
        2 => Just(Request::Update),
        1 => Just(Request::Signal),
        1 => any::<bool>().prop_map(|force| Request::Destroy { force }),
        3 => Just(Request::Wake),
        3 => any::<bool>().prop_map(|suspend| Request::Sleep { suspend }),
    ];
    prop_oneof![
        6 => (request, any::<bool>()).prop_map(|(request, late)| Event::Request { request, late }),
        3 => Just(Event::Ends),
        1 => Just(Event::Fails),
        1 => any::<bool>().prop_map(|restarts| Event::Exits { restarts }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4000, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn the_last_wish_that_was_accepted_comes_true(
        launch: bool,
        events in prop::collection::vec(event(), 0..24),
    ) {
        let mut machine = Subject { state: S::Creating, work: None, next: None, launched: false };
        machine.begin(Work::Create);
        machine.next = launch.then_some(Goal::Start);
        let mut wish = if launch { Wish::Runs } else { Wish::Rests };
        for event in events {
            match event {
                Event::Request { request, late } => {
                    let failed = machine.state == S::Failed;
                    if machine.request(request, late, wish) {
                        // An update is another try of what failed.
                        let retried = failed && request == Request::Update;
                        wish = if retried { Wish::Runs } else { wish.after(request, !late) };
                    }
                }
                Event::Ends => machine.ends(true),
                Event::Fails if machine.work.is_some() => {
                    let saving = machine.work == Some(Work::Do(Goal::Suspend));
                    // What was asked for while it was cleared up after is another try.
                    let clearing = machine.work == Some(Work::Abandon);
                    machine.ends(false);
                    // What failed is not tried for ever; the machine says so by its state.
                    if !clearing && wish != Wish::Gone || machine.state == S::Failed {
                        wish = if saving { Wish::Runs } else { Wish::Rests };
                    }
                }
                Event::Exits { restarts } if machine.state == S::Started => {
                    machine.begin(Work::Exit { restarts });
                    wish = if restarts { Wish::Runs } else { Wish::Rests };
                }
                Event::Fails | Event::Exits { .. } => {}
            }
            let state = machine.state;
            prop_assert_eq!(machine.work.is_some(), !state.is_settled(), "in {:?}", state);
        }
        let mut left = 8;
        while machine.work.is_some() {
            machine.ends(true);
            left -= 1;
            prop_assert!(left > 0, "it never comes to rest: {:?}", machine);
        }
        prop_assert!(wish.is_fulfilled_in(machine.state), "{:?} is wanted of {:?}", wish, machine);
    }

    #[test]
    fn a_destroy_that_was_accepted_is_never_undone(
        events in prop::collection::vec(event(), 0..12),
        force: bool,
    ) {
        for state in [
            S::Created,
            S::Started,
            S::Stopped,
            S::Suspended,
            S::Suspending,
            S::Stopping,
            S::Creating,
        ] {
            let mut machine = Subject { state, work: None, next: None, launched: true };
            match state {
                S::Suspending => machine.begin(Work::Do(Goal::Suspend)),
                S::Stopping => machine.begin(Work::Do(Goal::Stop)),
                S::Creating => machine.begin(Work::Create),
                _ => {}
            }
            if !machine.request(Request::Destroy { force }, false, Wish::Rests) {
                continue;
            }
            for event in &events {
                match *event {
                    Event::Request { request, late } => {
                        machine.request(request, late, Wish::Gone);
                    }
                    Event::Fails if machine.work != Some(Work::Do(Goal::Destroy)) => {
                        machine.ends(false);
                    }
                    _ => machine.ends(true),
                }
            }
            while machine.work.is_some() {
                machine.ends(true);
            }
            prop_assert_eq!(machine.state, S::Destroyed, "from {:?}", state);
        }
    }
}
