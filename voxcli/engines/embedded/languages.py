"""Says, in the language that the user spoke, that the answering model knows English only."""

ENGLISH_ONLY = {
    "ar": "عذرًا، لا أستطيع الإجابة إلا بالإنجليزية.",
    "cs": "Promiňte, umím odpovídat jen anglicky.",
    "da": "Beklager, jeg kan kun svare på engelsk.",
    "de": "Entschuldigung, ich kann nur auf Englisch antworten.",
    "el": "Συγγνώμη, μπορώ να απαντήσω μόνο στα αγγλικά.",  # noqa: RUF001 - Greek
    "en": "Sorry, I can only answer in English.",
    "es": "Lo siento, solo puedo responder en inglés.",
    "fi": "Anteeksi, osaan vastata vain englanniksi.",
    "fr": "Désolé, je ne peux répondre qu'en anglais.",
    "hi": "माफ़ कीजिए, मैं केवल अंग्रेज़ी में जवाब दे सकता हूँ।",
    "id": "Maaf, saya hanya bisa menjawab dalam bahasa Inggris.",
    "it": "Mi dispiace, posso rispondere solo in inglese.",
    "ja": "申し訳ありませんが、英語でしかお答えできません。",
    "ko": "죄송하지만 영어로만 대답할 수 있습니다.",
    "nl": "Sorry, ik kan alleen in het Engels antwoorden.",
    "pl": "Przepraszam, mogę odpowiadać tylko po angielsku.",
    "pt": "Desculpe, só posso responder em inglês.",
    "ru": "Извините, я могу отвечать только на английском.",
    "sv": "Tyvärr kan jag bara svara på engelska.",
    "tr": "Üzgünüm, yalnızca İngilizce cevap verebilirim.",  # noqa: RUF001 - Turkish
    "uk": "Вибачте, я можу відповідати лише англійською.",
    "vi": "Xin lỗi, tôi chỉ có thể trả lời bằng tiếng Anh.",
    "zh": "抱歉，我只能用英语回答。",  # noqa: RUF001 - Chinese
}


def english_only(language: str) -> str:
    """Return the sentence in the language of this code, or in English if it is not one of the large ones."""
    return ENGLISH_ONLY.get(language, ENGLISH_ONLY["en"])
