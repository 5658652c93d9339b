//! Who may write to a file or folder. What is read from disk is run on the GPU, so it must be nobody's but ours.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Why what is at a place cannot be trusted: who may change it, if that is anybody but the user of this process.
#[cfg(unix)]
pub fn stranger(metadata: &Metadata) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    unsafe extern "C" {
        safe fn geteuid() -> u32;
    }
    let (owner, user, mode) = (metadata.uid(), geteuid(), metadata.mode() & 0o7777);
    if owner != user {
        return Some(format!("user {owner} owns it, and this is user {user}"));
    }
    (mode & 0o022 != 0).then(|| format!("its mode {mode:o} lets others write to it"))
}

/// As on Unix; elsewhere a user's folder is taken to be private.
#[cfg(not(unix))]
pub fn stranger(_: &Metadata) -> Option<String> {
    None
}

/// Makes a folder that only this user can use, and those above it that are missing.
pub fn create_folder(path: &Path) -> io::Result<()> {
    if let Some(above) = path.parent() {
        fs::create_dir_all(above)?;
    }
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !path.is_dir() => Err(error),
        Err(_) | Ok(()) => Ok(()),
    }
}

/// Writes a new file that only this user can use.
pub fn create_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file: File = options.open(path)?;
    file.write_all(bytes)
}
