vcl 4.1;
# Varnish with bodyaccess, of varnish-modules: POST responses are cached by the bytes of the body. It does not sign.
import std;
import bodyaccess;

backend platform { .host = "127.0.0.1"; .port = "@UPSTREAM@"; }

sub vcl_recv {
  if (req.method == "POST") {
    std.cache_req_body(64KB);
    set req.http.X-Length = bodyaccess.len_req_body();
    return (hash);
  }
}
sub vcl_hash { bodyaccess.hash_req_body(); }
sub vcl_backend_fetch { set bereq.method = "POST"; }
sub vcl_backend_response { set beresp.ttl = 1h; }
