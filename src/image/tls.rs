//! TLS of what is fetched. Whom the process trusts is the system's to say, or `SSL_CERT_FILE` and `SSL_CERT_DIR`.

use std::error::Error;
use std::io;

/// Gives the process its provider of cryptography. Where another part of it has chosen one already, that one serves as well.
pub(crate) fn prepare() {
    rustls::crypto::ring::default_provider().install_default().ok();
}

/// Whether a connection failed since nobody whom this machine trusts vouches for the other end.
pub(crate) fn is_distrust(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return matches!(error, rustls::Error::InvalidCertificate(_));
        }
        // An error of I/O passes over what it wraps.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}
