-- Requests for wrk: rotates the cookies of a file. `wrk … -- FILE SHARE FIRST`, where
-- SHARE of 100 requests are POSTs and FIRST is the cookie to begin with; an empty file
-- means visitors without a cookie.
local requests, place = {}, 0

function init(arguments)
  local cookies = {}
  for cookie in io.lines(arguments[1]) do
    cookies[#cookies + 1] = cookie
  end
  local share = tonumber(arguments[2])
  place = tonumber(arguments[3])
  for number = 1, math.max(#cookies, 100) do
    local cookie = cookies[(number - 1) % math.max(#cookies, 1) + 1]
    local post = number * share % 100 < share
    local headers = { Cookie = cookie }
    requests[number] = wrk.format(post and "POST" or "GET", wrk.path, headers)
  end
end

function request()
  place = place % #requests + 1
  return requests[place]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "errors": %d}\n',
    summary.requests, summary.duration / 1e6,
    latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
