//! Colours of single words.

/// Paints, where colours are wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Paint {
    /// Colours are wanted.
    pub colour: bool,
}

impl Paint {
    /// Red.
    pub fn error(self, text: &str) -> String {
        self.paint(text, "31")
    }

    /// Bold.
    pub fn title(self, text: &str) -> String {
        if text.is_empty() { String::new() } else { self.paint(text, "1") }
    }

    /// Green.
    pub fn added(self, text: &str) -> String {
        self.paint(text, "32")
    }

    fn paint(self, text: &str, code: &str) -> String {
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}
