"""
The Poster Room: a shop, to see how sessions are used where people sign in.

    make shop                 then open http://127.0.0.1:8889

| read | to see |
|---|---|
| page.py | what each page knows of its visitor; flash messages; what is sensitive |
| accounts.py | sign-up, sign-in with `next` and "remember me", stepping up, passwords |
| users.py | the users in a table, their passwords hashed by scrypt in a thread |
| cart.py, posters.py | a cart, `increment()`, and an order under `lock()` |
| devices.py | "your devices", with sign-out there and everywhere |
| chat.py | a WebSocket that closes when its visitor signs out |
| photo.py | an upload with progress |
| admin.py | an administrator who sees the shop as a customer does, and comes back |
| app.py | the routes and the settings |
"""
