//! The binary under a pseudo-terminal, against a real server over a fake host: prompts, menus,
//! keys.

mod introduction;
mod prompts;
mod stand;
