"use strict";

const find = (id) => document.getElementById(id);

// The chat: a WebSocket, which the server closes when its visitor signs out.
function chat() {
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  const socket = new WebSocket(`${scheme}//${location.host}/chat/socket`);
  const usable = (yes) => {
    find("text").disabled = find("send").disabled = !yes;
  };
  socket.onopen = () => {
    usable(true);
    find("chat-says").textContent = "Everybody here can read it.";
    find("text").focus();
  };
  socket.onmessage = ({ data }) => {
    const { name, text } = JSON.parse(data);
    const line = document.createElement("li");
    const who = document.createElement("b");
    who.textContent = name;
    line.append(who, " ", text);
    find("said").append(line);
    line.scrollIntoView({ block: "nearest" });
  };
  socket.onclose = ({ code }) => {
    usable(false);
    find("chat-says").textContent =
      code === 1008 ? "Closed: you have signed out." : "The connection is lost; load the page anew.";
  };
  find("say").onsubmit = (event) => {
    event.preventDefault();
    if (find("text").value.trim()) socket.send(find("text").value);
    find("text").value = "";
  };
}

// The upload: `fetch` does not tell how much has left, and XMLHttpRequest does.
function upload(form) {
  form.onsubmit = (event) => {
    event.preventDefault();
    const file = find("photo").files[0];
    const says = find("upload-says");
    if (file.size > form.dataset.largest) {
      says.textContent = "That is more than 2 MB.";
      return;
    }
    const request = new XMLHttpRequest();
    request.open("PUT", "/account/photo");
    request.setRequestHeader("X-XSRFToken", form.elements._xsrf.value);
    request.upload.onprogress = ({ loaded, total }) => {
      find("progress").value = loaded / total;
      says.textContent = `${Math.round((100 * loaded) / total)} %`;
    };
    request.onload = () => {
      if (request.status === 204) location.reload();
      else says.textContent = request.status === 415 ? "That is neither PNG nor JPEG." : "That did not work.";
    };
    request.onerror = () => (says.textContent = "That did not work.");
    find("progress").hidden = false;
    request.send(file);
  };
}

if (find("said")) chat();
if (find("upload")) upload(find("upload"));
