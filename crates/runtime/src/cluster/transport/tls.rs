//! Links inside mutual TLS: both sides show a certificate of the cluster's own authority, which names their node.
//!
//! Only TLS 1.3 is spoken, and no session is resumed: links are few and live long, and each new one is judged by its own
//! certificate. The cookie is still required inside: a process that has only one of the two gets no link. There are no
//! lists of revoked certificates; the answer to a leaked key is another authority.
//!
//! The name of the node is a DNS name in its certificate, so with TLS a name has 1 to 63 letters, digits, `-` and `_`,
//! neither begins nor ends with `-`, and is not digits only. (`_` is no character of host names, but rustls takes it.)
//! Certificates do not tell upper from lower case: names of one cluster must differ in more than that.

use std::fmt::Display;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, DnsName, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// This node's certificate and key, and the authority whose certificates it takes. They are read once: new ones need a
/// restart.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
    mine: CertificateDer<'static>,
}

impl Tls {
    /// Reads PEM files: the certificate, followed by the certificates between it and the authority; its private key;
    /// and the authority's certificate, or several while one replaces another.
    ///
    /// # Errors
    /// A file cannot be read, the files do not belong together, or every other node would refuse the certificate
    /// because it has expired or may not be used by both sides of a link.
    pub fn load(cert: &Path, key: &Path, ca: &Path) -> io::Result<Self> {
        // The provider is named here because the process has no default one: dependencies enable two.
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        for authority in certificates(ca)? {
            roots.add(authority).map_err(|e| wrong(ca, e))?;
        }
        let roots = Arc::new(roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
        let verifier = verifier.build().map_err(|e| wrong(ca, e))?;
        let chain = certificates(cert)?;
        judge(&chain, verifier.as_ref(), &roots, &provider).map_err(|error| {
            wrong(
                cert,
                format_args!("no node of the cluster of {} takes it: {error}", ca.display()),
            )
        })?;
        let mine = chain[0].clone();
        let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| wrong(key, e))?;
        let unfit = |error| wrong(key, format_args!("no key for {}: {error}", cert.display()));

        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(io::Error::other)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), secret.clone_key())
            .map_err(unfit)?;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, secret)
            .map_err(unfit)?;
        client.resumption = Resumption::disabled();
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(server)),
            connector: TlsConnector::from(Arc::new(client)),
            mine,
        })
    }

    /// Whether a node of that name can take part with this certificate.
    ///
    /// # Errors
    /// The name cannot be in a certificate, or the certificate is another node's.
    pub fn check_name(&self, name: &str) -> io::Result<()> {
        let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
        if !is_possible_name(name) {
            return Err(wrong(format!(
                "with TLS a node cannot be called {name:?}: {POSSIBLE_NAMES}"
            )));
        }
        names(&self.mine, name)
            .map_err(|error| wrong(format!("this is not the certificate of {name}: {error}")))
    }

    /// The answering side. The certificate is compared with the other side's name once that side has said it.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
    ) -> io::Result<(server::TlsStream<TcpStream>, Certificate)> {
        let stream = self.acceptor.accept(stream).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        // The handshake fails without a certificate, but nothing here relies on that.
        let shown = shown.ok_or(io::ErrorKind::PermissionDenied)?.clone().into_owned();
        Ok((stream, Certificate(shown)))
    }

    /// The dialling side, which sends nothing to any node but the one of that name.
    pub(super) async fn connect(
        &self,
        stream: TcpStream,
        name: &str,
    ) -> io::Result<client::TlsStream<TcpStream>> {
        self.connector.connect(server_name(name).map_err(io::Error::other)?, stream).await
    }
}

/// The rules of names, for the people who chose another name.
pub const POSSIBLE_NAMES: &str = "a name that a certificate can hold has 1 to 63 letters, digits, - and _, neither \
                                  begins nor ends with -, and is not digits only";

/// Whether a certificate can hold the name.
pub fn is_possible_name(name: &str) -> bool {
    // A dot would make several labels of the name, and a node's name is one.
    !name.contains('.') && DnsName::try_from(name).is_ok()
}

/// The other side's certificate, whose key it has proved to have.
pub(super) struct Certificate(CertificateDer<'static>);

impl Certificate {
    pub fn is_of(&self, name: &str) -> bool {
        names(&self.0, name).is_ok()
    }
}

fn names(certificate: &CertificateDer<'_>, name: &str) -> Result<(), rustls::Error> {
    let name = server_name(name)?;
    verify_server_name(&ParsedCertificate::try_from(certificate)?, &name)
}

fn server_name(name: &str) -> Result<ServerName<'static>, rustls::Error> {
    let name = DnsName::try_from(name.to_owned());
    name.map(ServerName::DnsName).map_err(|e| rustls::Error::General(e.to_string()))
}

/// Verifies the certificate as other nodes will: a node that all of them would refuse must not start.
fn judge(
    chain: &[CertificateDer<'_>],
    verifier: &dyn ClientCertVerifier,
    roots: &RootCertStore,
    provider: &CryptoProvider,
) -> Result<(), rustls::Error> {
    let (mine, between) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
    let now = UnixTime::now();
    verifier.verify_client_cert(mine, between, now)?;
    let parsed = ParsedCertificate::try_from(mine)?;
    let algorithms = provider.signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(&parsed, roots, between, now, algorithms)
}

fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_file_iter(path).map_err(|e| wrong(path, e))?;
    let all: Vec<_> = all.collect::<Result<_, _>>().map_err(|e| wrong(path, e))?;
    if all.is_empty() {
        return Err(wrong(path, "there is no certificate in it"));
    }
    Ok(all)
}

fn wrong(path: &Path, what: impl Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{}: {what}", path.display()))
}
