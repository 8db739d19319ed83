//! Who a client is by the certificate that it showed.

use x509_cert::Certificate;
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::der::asn1::{Ia5StringRef, ObjectIdentifier, PrintableStringRef, Utf8StringRef};
use x509_cert::der::{Decode, Error};

use crate::policy::facts::{ClientCertificate, CommonName};
use crate::tls::certificate::moment;

/// `id-at-commonName` (RFC 5280 appendix A.1).
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// What a certificate in DER says of its subject. Whoever calls has verified it.
///
/// # Errors
/// It is no certificate.
pub fn read(der: &[u8]) -> Result<ClientCertificate, Error> {
    let certificate = Certificate::from_der(der)?.tbs_certificate;
    let names = certificate.subject.0.iter().flat_map(|relative| relative.0.iter());
    let mut names = names.filter(|it| it.oid == COMMON_NAME).map(text);
    let common_name = match (names.next(), names.next()) {
        (None, _) => CommonName::Absent,
        (Some(Some(name)), None) => CommonName::Is(name.into()),
        // Who reads the first and who reads the last would not mean the same user.
        (Some(_), _) => CommonName::Unclear,
    };
    Ok(ClientCertificate { common_name, not_after: moment(certificate.validity.not_after) })
}

/// The encodings that RFC 5280 §4.1.2.4 has for new certificates, and that of addresses of mail.
fn text(attribute: &AttributeTypeAndValue) -> Option<&str> {
    let value = &attribute.value;
    let utf8 = value.decode_as::<Utf8StringRef<'_>>().map(|it| it.as_str());
    let printable = || value.decode_as::<PrintableStringRef<'_>>().map(|it| it.as_str());
    let ia5 = || value.decode_as::<Ia5StringRef<'_>>().map(|it| it.as_str());
    utf8.or_else(|_| printable()).or_else(|_| ia5()).ok()
}
