//! `zvgate key`

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use super::{fail, print};
use crate::secret::hex;

pub(super) fn run() -> Result<(), u8> {
    let mut random = [0u8; 32];
    getrandom::fill(&mut random).map_err(fail)?;
    let key = URL_SAFE_NO_PAD.encode(random);
    let hash = hex(&Sha256::digest(key.as_bytes()));
    print(&format!("key        = {key}\nkey_sha256 = {hash}"))
}
