#!/usr/bin/env bash
# Coupons through zvgate, with curl and jq.
#
#   coupons.sh URL list CUSTOMER            prints the coupons that the customer can redeem now
#   coupons.sh URL redeem CUSTOMER CARD ID  redeems one; ID is your own id of the redemption (bizId)
#   coupons.sh URL reverse ID CUSTOMER      undoes a redemption
#
# The caller's key, if the gateway wants one, is read from ZVGATE_KEY, and the tenant's name from ZVGATE_TENANT.
# Exit status: 0 done, 1 the gateway or the platform cannot do it now, 2 wrong usage, 3 the platform refused,
# 4 nobody knows whether it was done.
set -euo pipefail

# Above the gateway's own limits (server.request_timeout, server.write_request_timeout): the gateway answers first.
read_timeout=20 write_timeout=30
# How long to go on when the gateway says "later". The gateway retries reads itself: do not retry anything else.
patience=10
# After an unknown outcome: how often to look, with a pause between, since the platform may lag.
looks=3 look_pause=2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Sends a body to a path: sets $status (0 without an answer) and $outcome, and leaves the answer in $work/body.
send() { # path body timeout [curl arguments]
  local path=$1 body=$2 timeout=$3 code=0
  shift 3
  : >"$work/head" >"$work/body"
  # The key is not among the arguments, which every process on the machine can read.
  {
    [ -z "${ZVGATE_KEY-}" ] || printf 'Authorization: Bearer %s\n' "$ZVGATE_KEY"
    [ -z "${ZVGATE_TENANT-}" ] || printf 'X-Zvgate-Tenant: %s\n' "$ZVGATE_TENANT"
  } >"$work/headers"
  curl -s -o "$work/body" -D "$work/head" -m "$timeout" -H 'Content-Type: application/json' -H "@$work/headers" \
    --data-binary "$body" "$@" -- "$url$path" || code=$?
  status=$(awk 'NR == 1 { print $2 }' "$work/head")
  outcome=$(header x-zvgate-outcome)
  [ "$code" = 0 ] && return
  # No connection: nothing was sent. Anything else may have been sent.
  [ "$code" = 7 ] && outcome=not-sent || outcome=${outcome:-unknown}
  status=0
}

header() {
  tr -d '\r' <"$work/head" | awk -v name="$1:" 'tolower($1) == name { print $2 }' | tail -n 1
}

# The same, repeated for as long as the gateway asks to wait; of a write, only if nothing was sent.
patiently() {
  local until=$((SECONDS + patience)) pause
  while send "$@"; do
    pause=$(header retry-after)
    case $status in 429 | 503) ;; *) return 0 ;; esac
    case ${outcome:-not-sent} in not-sent) ;; *) return 0 ;; esac
    [[ $pause =~ ^[0-9]+$ ]] && [ $((SECONDS + pause)) -le "$until" ] || return 0
    sleep "$pause"
  done
}

# Says why a request failed, and ends.
fail() {
  local name
  name=$(jq -r '(.type // "" | split(":") | last) // .error // "http"' "$work/body" 2>/dev/null || true)
  if [ "$name" = platform_exception ]; then
    echo "refused: $(jq -r '"\(.platformCode) \(.platformMessage)"' "$work/body")" >&2
    exit 3
  fi
  echo "failed: ${name:-unreachable} ($status): $(jq -r '.detail // .message // ""' "$work/body" 2>/dev/null) [request $(header x-request-id)]" >&2
  exit 1
}

# The coupons of a customer, as JSON in $work/body.
coupons() { # request [curl arguments]
  patiently /v1/coupons:list "$1" "$read_timeout" "${@:2}"
  [ "$status" = 200 ] || fail
}

# The status of a coupon, not from the cache.
status_of() { # customer card
  coupons "$(jq -nc --arg customer "$1" --arg card "$2" '{customerId: $customer, cardId: $card}')" -H 'Cache-Control: no-cache'
  state=$(jq -r '.coupons[0].status.name // "not there"' "$work/body")
}

# Sends a write and sets $outcome; ends if it failed and nothing was sent.
write() { # route params customer
  patiently "/v3/crm/coupon/$1" "{\"params\":$2}" "$write_timeout" -H "X-Zvgate-Customer: $3"
  [ "$outcome" != not-sent ] || fail
}

list() {
  coupons "$(jq -nc --arg customer "$1" '{customerId: $customer, usable: true}')"
  jq -r '.coupons[] | "\(.cardId) \(.status.name) \(.endAt) \(.title)"' "$work/body"
  [ "$(jq .complete "$work/body")" = true ] || echo "warning: there are more coupons than the platform lists" >&2
}

refused() {
  echo "refused: $1" >&2
  exit 3
}

redeem() {
  # What the customer sees may be some seconds old; what is about to be redeemed must not be.
  status_of "$1" "$2"
  [ "$state" = unused ] || refused "the coupon is $state"
  write writeOffCoupon "$(jq -nc --arg customer "$1" --arg card "$2" --arg id "$3" '{bizId: $id, customerId: $customer, couponsCardList: [$card]}')" "$1"
  case $outcome in
    executed) echo redeemed ;;
    refused) refused "the platform refused: $(jq -r '"\(.code) \(.message)"' "$work/body")" ;;
    *)
      for _ in $(seq "$looks"); do
        status_of "$1" "$2"
        [ "$state" != redeemed ] || { echo redeemed && return; }
        sleep "$look_pause"
      done
      # It may still be under way: undo whatever comes of it, so that another try starts from a known state.
      write couponReverse "$(jq -nc --arg id "$3" '{bizId: $id}')" "$1"
      [ "$outcome" != unknown ] || unknown
      refused "it was not redeemed; try again with another id"
      ;;
  esac
}

unknown() {
  echo "unknown: status $status; look later, before anything is repeated" >&2
  exit 4
}

# With the customer, the gateway knows whose coupons changed whatever comes of it.
reverse() {
  write couponReverse "$(jq -nc --arg id "$1" '{bizId: $id}')" "$2"
  case $outcome in
    executed) echo reversed ;;
    refused) refused "the platform refused: $(jq -r '"\(.code) \(.message)"' "$work/body")" ;;
    *) unknown ;;
  esac
}

url=${1-}
url=${url%/}
case "${2-} $#" in
  "list 3" | "redeem 5" | "reverse 4") "$2" "${@:3}" ;;
  *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
esac
