use std::{io, path::PathBuf};

/// Why a file system could not be filled. What is in the image file then is worthless.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image file could not be read or written.
    #[error("could not {what} the file system: {source}")]
    Image {
        /// `read` or `write`.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// A file of the tree could not be read.
    #[error("could not read `{}`: {source}", path.display())]
    Source {
        /// Below the tree.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file system has no block left.
    #[error("the files do not fit: all blocks of the file system are used")]
    NoBlocks,
    /// The file system has no inode left.
    #[error("the files do not fit: all inodes of the file system are used")]
    NoInodes,
    /// A file that ext4 can't hold.
    #[error("`{}` can't be stored on ext4: {reason}", path.display())]
    Unsupported {
        /// Below the tree.
        path: PathBuf,
        /// Which bound of the format it exceeds.
        reason: String,
    },
    /// The file system is not one that mke2fs has just made with the features this crate knows.
    #[error("the file system can't be filled: {0}")]
    Unknown(String),
    /// The caller wanted no more.
    #[error("filling the file system was stopped")]
    Stopped,
}
